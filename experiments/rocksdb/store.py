# SPDX-License-Identifier: Apache-2.0
"""A directory of results: cells.jsonl, to which each cell is appended, and the files that ghOSt's scripts write.

cells.jsonl has the run in its first line, and then a line for each cell. What is appended is on the disk before the
next cell begins. A last line without its end was cut off by a kill, and is measured again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...loaders.errors import GhostError
from . import tables
from .options import SATURATED_NS, is_saturated

CELLS = "cells.jsonl"
#: What two runs must share for one to resume the other.
_SAME = ("sweep", "cpus", "time_scale", "candidates", "options", "plan")


@dataclass
class Results:
    """The run of a sweep, its cells by candidate and throughput, and failures by candidate."""

    directory: Path
    run: dict[str, Any]
    cells: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_cut_off: bool = False

    def of(self, candidate: str) -> list[dict[str, Any]]:
        """The cells of a candidate that were measured, by throughput."""
        return [cell for (name, _), cell in sorted(self.cells.items(), key=lambda item: item[0]) if name == candidate]


def create(directory: Path, run: Mapping[str, Any]) -> Results:
    """Begin a directory of results; raises GhostError if there are some."""
    results = Results(directory, dict(run))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / CELLS).exists():
            raise GhostError(f"{directory} has results", hint="--resume, or another --output")
        _append(directory / CELLS, {"type": "run", **run})
    except OSError as error:
        raise _cannot_write(directory, error) from None
    return results


def resume(directory: Path, run: Mapping[str, Any]) -> Results:
    """The results in ``directory``, to be completed; raises GhostError if they are of another run."""
    if not (directory / CELLS).exists():
        return create(directory, run)
    results = read(directory)
    for name in _SAME:
        if results.run.get(name) != run[name]:
            raise GhostError(
                f"{directory} has results of another run: its {name} is {json.dumps(results.run.get(name))[:200]}, "
                f"not {json.dumps(run[name])[:200]}",
                hint="the same command line, or another --output",
            )
    if results.is_cut_off:
        path = directory / CELLS
        kept = path.read_bytes().rpartition(b"\n")[0] + b"\n"
        os.truncate(path, len(kept))
    results.failures.clear()  # they are tried again
    return results


def read(directory: Path) -> Results:
    """The results in ``directory``; raises GhostError with the line that is not one."""
    path = directory / CELLS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise GhostError(f"cannot read {path}: {reason}", hint="a directory that a sweep wrote") from None
    lines = text.split("\n")
    is_cut_off = bool(lines[-1])
    results: Results | None = None
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            if number == 1:
                results = Results(directory, _run(row), is_cut_off=is_cut_off)
            elif results is not None:
                _add(results, row)
        except (ValueError, KeyError, TypeError) as error:
            raise GhostError(
                f"{path}:{number} is damaged: {error}",
                hint=f"remove line {number}; --resume measures its cell again" if number > 1 else "another directory",
            ) from None
    if results is None:
        raise GhostError(f"{path} is empty", hint="measure again, to another --output")
    return results


def _run(row: dict[str, Any]) -> dict[str, Any]:
    if row["type"] != "run" or not all(name in row for name in _SAME):
        raise ValueError("it is not a sweep's first line")
    return row


def _add(results: Results, row: dict[str, Any]) -> None:
    if row["type"] == "failure":
        results.failures[row["candidate"]] = row
        return
    if row["type"] != "cell" or row["rocksdb"]["all"]["total"]["count"] < 0:
        raise ValueError(f"it is no cell: {row['type']}")
    results.cells[row["candidate"], row["throughput"]] = row
    results.failures.pop(row["candidate"], None)


def add(results: Results, row: dict[str, Any]) -> None:
    """Add a cell or a failure, and write the files of its candidate anew; raises GhostError."""
    _add(results, row)
    try:
        _append(results.directory / CELLS, row)
        _export(results, row["candidate"])
    except OSError as error:
        raise _cannot_write(results.directory, error) from None


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cannot_write(directory: Path, error: OSError) -> GhostError:
    hint = "make room, then: --resume"
    return GhostError(f"cannot write the results to {directory}: {error.strerror}", hint=hint)


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
