# SPDX-License-Identifier: Apache-2.0
"""A file of JSON lines to which a long run appends what it measures, so that another can go on where it stopped.

The first line is the run itself, with what a later run must share to resume it. What is appended is on the disk before
the next measurement begins. A last line without its end was cut off by a kill, and is measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..loaders.errors import GhostError

Row = dict[str, Any]
#: Raises ValueError, KeyError or TypeError for a row that is none of this kind of run.
Check = Callable[[Row], object]


@dataclass
class Journal:
    """The file at ``path``: the ``run`` of its first line, and the ``rows`` after it."""

    path: Path
    run: Row
    rows: list[Row] = field(default_factory=list)
    is_cut_off: bool = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line; raises GhostError if it cannot be written."""
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.rows.append(dict(row))


def create(path: Path, run: Mapping[str, Any]) -> Journal:
    """Begin a file, in a directory that is made; raises GhostError if there is one."""
    if path.exists():
        raise GhostError(f"{path} has results", hint="--resume, or another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    journal = Journal(path, {"type": "run", **run})
    journal.append(journal.run)
    journal.rows.clear()
    return journal


def read(path: Path, check: Check) -> Journal:
    """The file at ``path``, each row checked; raises GhostError with the line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise GhostError(f"cannot read {path}: {reason}", hint="what --output has written") from None
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            if (row["type"] == "run") != (number == 1):
                raise ValueError("it is not the first line of a run" if number == 1 else "another run begins")
            check(row)
        except (ValueError, KeyError, TypeError) as error:
            raise GhostError(
                f"{path}:{number} is damaged: {error}",
                hint=f"remove line {number}; --resume measures it again" if number > 1 else "another --output",
            ) from None
        rows.append(row)
    if not rows:
        raise GhostError(f"{path} is empty", hint="measure again, to another --output")
    return Journal(path, rows[0], rows[1:], is_cut_off=bool(lines[-1]))


def resume(path: Path, run: Mapping[str, Any], same: Sequence[str], check: Check) -> Journal:
    """The file at ``path``, to be completed, or a new one.

    Raises GhostError if it is of another run: one that differs in what ``same`` names.
    """
    if not path.exists():
        return create(path, run)
    journal = read(path, check)
    for name in same:
        if journal.run.get(name) != run[name]:
            raise GhostError(
                f"{path} has results of another run: its {name} is {json.dumps(journal.run.get(name))[:200]}, "
                f"not {json.dumps(run[name])[:200]}",
                hint="the same command line, or another --output",
            )
    if journal.is_cut_off:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        journal.is_cut_off = False
    return journal


def cannot_write(path: Path, error: OSError) -> GhostError:
    """The error for results that cannot be kept at ``path``."""
    return GhostError(f"cannot write the results to {path}: {error.strerror}", hint="make room, then: --resume")
