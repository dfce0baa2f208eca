# SPDX-License-Identifier: Apache-2.0
"""A queue of tasks in an order of their own."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from typing import Any, Generic, TypeVar

from .task import Task

T = TypeVar("T", bound=Task)


class PriorityQueue(Generic[T]):
    """Tasks by rank, the least first, and equals in the order they came; each is in it once."""

    def __init__(self) -> None:
        self._order: list[tuple[Any, int, T]] = []
        self._entries: dict[T, tuple[Any, int, T]] = {}
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, task: T) -> bool:
        return task in self._entries

    def rank(self, task: T) -> Any:
        """Where it belongs."""
        raise NotImplementedError

    def add(self, task: T) -> None:
        """To its rank, which may be another than it was."""
        self.put(task, self.rank(task))

    def put(self, task: T, rank: Any) -> None:
        """To this rank."""
        self.discard(task)
        entry = self._entries[task] = (rank, next(self._count), task)
        insort(self._order, entry)

    def discard(self, task: T) -> None:
        """Out of it, wherever it is."""
        if (entry := self._entries.pop(task, None)) is not None:
            del self._order[bisect_left(self._order, entry)]

    def head(self) -> tuple[Any, T] | None:
        """The least rank, and whose it is."""
        return self._order[0][::2] if self._order else None

    def oldest(self) -> T | None:
        """The one that was added, or put, before all others."""
        return next(iter(self._entries), None)

    def first(self, cpu: int) -> T | None:
        """The first that may run on ``cpu``."""
        return next((task for _, _, task in self._order if task.may_run_on(cpu)), None)

    def pop(self, cpu: int) -> T | None:
        """Take the first that may run on ``cpu``."""
        if (task := self.first(cpu)) is not None:
            self.discard(task)
        return task
