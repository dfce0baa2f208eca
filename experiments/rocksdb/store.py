# SPDX-License-Identifier: Apache-2.0
"""The directory of results of a sweep, with the files of ghOSt's scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..journal import Row, cannot_write
from ..results import CellResults
from . import tables
from .options import SATURATED_NS, is_saturated


class Results(CellResults[tuple[str, int]]):
    """The run of a sweep, its cells by candidate and throughput, and failures by candidate."""

    SAME = ("sweep", "cpus", "time_scale", "candidates", "options", "plan")

    @staticmethod
    def key(row: Row) -> tuple[str, int]:
        return row["candidate"], row["throughput"]

    @staticmethod
    def check_cell(row: Row) -> None:
        if row["rocksdb"]["all"]["total"]["count"] < 0:
            raise ValueError("a negative number of requests")

    def add(self, row: Row) -> None:
        """Add a cell or a failure, and write the files of its candidate anew; raises GhostError."""
        super().add(row)
        try:
            _export(self, row["candidate"])
        except OSError as error:
            raise cannot_write(self.directory, error) from None


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
