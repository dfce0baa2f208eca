# SPDX-License-Identifier: Apache-2.0
"""A directory of results: cells.jsonl, a journal with a line for each cell that was measured, or has failed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from . import journal
from .journal import Journal, Row

CELLS = "cells.jsonl"

#: What identifies a cell; it begins with the candidate.
Key = TypeVar("Key", bound=tuple[Any, ...])


@dataclass
class CellResults(ABC, Generic[Key]):
    """The run, its cells by key, and failures by candidate."""

    #: What two runs must share for one to resume the other.
    SAME: ClassVar[Sequence[str]]

    journal: Journal
    cells: dict[Key, Row] = field(default_factory=dict)
    failures: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, run: Mapping[str, Any]) -> Self:
        """Begin a directory of results; raises GhostError if there are some."""
        return cls(journal.create(directory / CELLS, run))

    @classmethod
    def resume(cls, directory: Path, run: Mapping[str, Any]) -> Self:
        """The results in ``directory``, to be completed; raises GhostError if they are of another run."""
        results = cls.of_journal(journal.resume(directory / CELLS, run, cls.SAME, cls.check))
        results.failures.clear()  # they are tried again
        return results

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The results in ``directory``; raises GhostError with the line that is not one."""
        return cls.of_journal(journal.read(directory / CELLS, cls.check))

    @classmethod
    def of_journal(cls, kept: Journal) -> Self:
        """The results in a journal."""
        results = cls(kept)
        for row in kept.rows:
            results._take(row)
        return results

    @classmethod
    def check(cls, row: Row) -> None:
        """Raise ValueError, KeyError or TypeError for a row that is none of this kind of run."""
        if row["type"] == "run":
            if missing := [name for name in cls.SAME if name not in row]:
                raise ValueError(f"the first line has {', '.join(missing)}")
            return
        cls.key(row)
        if row["type"] == "cell":
            cls.check_cell(row)
        elif row["type"] == "failure":
            row["reason"]
        else:
            raise ValueError(f"it is no cell: {row['type']}")

    @staticmethod
    @abstractmethod
    def key(row: Row) -> Key:
        """What identifies the cell of a row."""

    @staticmethod
    @abstractmethod
    def check_cell(row: Row) -> None:
        """Raise ValueError, KeyError or TypeError for a cell without what was measured."""

    @property
    def directory(self) -> Path:
        """Where they are kept."""
        return self.journal.path.parent

    @property
    def run(self) -> Row:
        """The run itself: its plan, and where it was measured."""
        return self.journal.run

    def of(self, candidate: str) -> list[Row]:
        """The cells of a candidate that were measured, in the order of their keys."""
        return [row for key, row in sorted(self.cells.items(), key=lambda item: item[0]) if key[0] == candidate]

    def add(self, row: Row) -> None:
        """Add a cell or a failure; raises GhostError if it cannot be kept."""
        self.check(row)
        self._take(row)
        self.journal.append(row)

    def _take(self, row: Row) -> None:
        if row["type"] == "failure":
            self.failures[row["candidate"]] = row
            return
        self.cells[self.key(row)] = row
        self.failures.pop(row["candidate"], None)
