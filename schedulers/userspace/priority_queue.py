# SPDX-License-Identifier: Apache-2.0
"""A queue that orders its tasks by rank."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from ..agents.extension import or_native
from ..agents.task import Task

T = TypeVar("T", bound=Task)


@or_native
class PriorityQueue(Generic[T]):
    """Tasks by rank, the least first, and those of one rank in the order of arrival; each task at most once.

    Ranks are compared with ``<``. A task whose rank cannot be compared is not in the queue afterwards.
    """

    def __init__(self) -> None:
        self._order: list[tuple[Any, int, T]] = []
        self._entries: dict[T, tuple[Any, int, T]] = {}
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, task: T) -> bool:
        return task in self._entries

    def __iter__(self) -> Iterator[T]:
        """A snapshot of the tasks in order."""
        return iter([task for _, _, task in self._order])

    def rank(self, task: T) -> Any:
        """The rank that add() gives ``task``."""
        raise NotImplementedError

    def add(self, task: T) -> None:
        """Insert ``task`` at its rank, or move it there if its rank has changed."""
        self.put(task, self.rank(task))

    def put(self, task: T, rank: Any) -> None:
        """Insert ``task`` at ``rank``, or move it there."""
        self.discard(task)
        entry = (rank, next(self._count), task)
        insort(self._order, entry)
        self._entries[task] = entry
        task._queues[self] = None

    def discard(self, task: T) -> None:
        """Remove ``task`` if it is in the queue."""
        if (entry := self._entries.pop(task, None)) is not None:
            del self._order[bisect_left(self._order, entry)]
            del task._queues[self]

    def head(self) -> tuple[Any, T] | None:
        """The least rank, and the first task that has it."""
        return self._order[0][::2] if self._order else None

    def oldest(self) -> T | None:
        """The task that has been at its rank longest."""
        return next(iter(self._entries), None)

    def first(self, cpu: int) -> T | None:
        """The first task that may run on ``cpu``."""
        for _, _, task in self._order:
            if task.may_run_on(cpu):
                return task
        return None

    def pop(self, cpu: int) -> T | None:
        """Remove and return the first task that may run on ``cpu``."""
        if (task := self.first(cpu)) is not None:
            self.discard(task)
        return task
