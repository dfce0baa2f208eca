# SPDX-License-Identifier: Apache-2.0
"""A directory of results: cells.jsonl, a journal with a line for each cell, and the files of ghOSt's scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import journal
from ..journal import Journal, cannot_write
from . import tables
from .options import SATURATED_NS, is_saturated

CELLS = "cells.jsonl"
#: What two runs must share for one to resume the other.
_SAME = ("sweep", "cpus", "time_scale", "candidates", "options", "plan")


@dataclass
class Results:
    """The run of a sweep, its cells by candidate and throughput, and failures by candidate."""

    journal: Journal
    cells: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where they are kept."""
        return self.journal.path.parent

    @property
    def run(self) -> dict[str, Any]:
        """The run itself: its plan, and where it was measured."""
        return self.journal.run

    def of(self, candidate: str) -> list[dict[str, Any]]:
        """The cells of a candidate that were measured, by throughput."""
        return [cell for (name, _), cell in sorted(self.cells.items(), key=lambda item: item[0]) if name == candidate]


def create(directory: Path, run: Mapping[str, Any]) -> Results:
    """Begin a directory of results; raises GhostError if there are some."""
    return Results(journal.create(directory / CELLS, run))


def resume(directory: Path, run: Mapping[str, Any]) -> Results:
    """The results in ``directory``, to be completed; raises GhostError if they are of another run."""
    results = of(journal.resume(directory / CELLS, run, _SAME, check))
    results.failures.clear()  # they are tried again
    return results


def read(directory: Path) -> Results:
    """The results in ``directory``; raises GhostError with the line that is not one."""
    return of(journal.read(directory / CELLS, check))


def of(kept: Journal) -> Results:
    """The results in a journal."""
    results = Results(kept)
    for row in kept.rows:
        _add(results, row)
    return results


def check(row: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for a row that is none of a sweep."""
    if row["type"] == "run":
        if missing := [name for name in _SAME if name not in row]:
            raise ValueError(f"a sweep's first line has {', '.join(missing)}")
        return
    row["candidate"], row["throughput"]
    if row["type"] == "cell":
        if row["rocksdb"]["all"]["total"]["count"] < 0:
            raise ValueError("a negative number of requests")
    elif row["type"] != "failure":
        raise ValueError(f"it is no cell: {row['type']}")


def _add(results: Results, row: dict[str, Any]) -> None:
    if row["type"] == "failure":
        results.failures[row["candidate"]] = row
        return
    results.cells[row["candidate"], row["throughput"]] = row
    results.failures.pop(row["candidate"], None)


def add(results: Results, row: dict[str, Any]) -> None:
    """Add a cell or a failure, and write the files of its candidate anew; raises GhostError."""
    check(row)
    _add(results, row)
    results.journal.append(row)
    try:
        _export(results, row["candidate"])
    except OSError as error:
        raise cannot_write(results.directory, error) from None


def _export(results: Results, candidate: str) -> None:
    """Write the files of ghOSt's scripts: the options as JSON, and then lines that begin with the throughput."""
    directory = results.directory / directory_name(candidate)
    directory.mkdir(exist_ok=True)
    options, cells = results.run["options"][candidate], results.of(candidate)
    for kind, name in (("all", "rocksdb"), ("get", "rocksdb_get"), ("range", "rocksdb_range")):
        lines = [json.dumps(options["rocksdb"])]
        for cell in cells:
            seconds = cell["rocksdb"]["generator"]["wanted_ns"] / 1e9
            rows = tables.stage_rows(cell["rocksdb"][kind], seconds, tables.MICROSECONDS)
            lines += [",".join([str(cell["throughput"]), *row]) for row in rows]
        _replace(directory / name, lines)
    if options["antagonist"] is not None:
        lines = [json.dumps(options["antagonist"])]
        for cell in cells:
            lines += [",".join([str(cell["throughput"]), *row]) for row in tables.shares(cell["antagonist"])]
        _replace(directory / "antagonist", lines)


def _replace(path: Path, lines: list[str]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    new.replace(path)


def directory_name(candidate: str) -> str:
    """A name of a directory for a candidate, which may be a path with options."""
    return re.sub(r"[^\w.=,:+-]", "_", candidate).lstrip(".") or "_"


def saturation(results: Results) -> Iterator[str]:
    """For each candidate, the first throughput at which it is saturated."""
    scale = results.run["time_scale"]
    limit = f"a p99 of {tables.time_in_words(SATURATED_NS * scale)}"
    for name in results.run["candidates"]:
        own = results.of(name)
        over = [cell["throughput"] for cell in own if is_over(cell, scale)]
        if over:
            yield f"{name} reaches {limit} at {over[0]:,} requests/s"
        elif own:
            yield f"{name} stays below {limit} up to {own[-1]['throughput']:,} requests/s"


def is_over(cell: Mapping[str, Any], scale: float) -> bool:
    """Whether RocksDB is saturated in a cell: so it is if no request has ended."""
    total = cell["rocksdb"]["all"]["total"]
    return not total["count"] or is_saturated(total["p99"], scale)
