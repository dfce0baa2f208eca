# SPDX-License-Identifier: Apache-2.0
"""CPU time in proportion to weight: the vruntime of tasks, and a queue in the order of vruntime; knows no kernel."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

NICE_0_WEIGHT = 100


class Fair(Protocol):
    """What the queue knows of a task."""

    vruntime: int


T = TypeVar("T", bound=Fair)


class Account:
    """The vruntime of one task: the CPU time that it has had, in ns, divided by its weight (nice 0: by 1)."""

    def __init__(self) -> None:
        self.vruntime, self.charged_weight = 0, NICE_0_WEIGHT
        self.charged_ns: int | None = None

    def charge(self, runtime_ns: int, weight: int) -> None:
        """Add the CPU time since the last charge, at the weight of that time; ``weight`` counts from now on.

        ``runtime_ns`` is the task's CPU time so far; the first charge only records it.
        """
        if self.charged_ns is not None:
            self.vruntime += (runtime_ns - self.charged_ns) * NICE_0_WEIGHT // self.charged_weight
        self.charged_ns, self.charged_weight = runtime_ns, weight


class FairQueue(Generic[T]):
    """Tasks in order of vruntime, and those of one vruntime in the order of arrival; each task at most once.

    The clock is the least vruntime of the waiting tasks and the running one, and never goes back. A task that arrives
    with less, because it slept or is new, starts at the clock.
    """

    def __init__(self) -> None:
        self.clock = 0
        self._heap: list[tuple[int, int, T]] = []
        self._entries: dict[T, tuple[int, int, T]] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task: T) -> bool:
        return task in self._entries

    def __iter__(self) -> Iterator[T]:
        """A snapshot of the tasks, in the order of arrival."""
        return iter(tuple(self._entries))

    def add(self, task: T) -> None:
        """Insert ``task`` at its vruntime, or move it there if it is in the queue."""
        task.vruntime = max(task.vruntime, self.clock)
        self._entries.pop(task, None)
        self._entries[task] = (task.vruntime, next(self._numbers), task)
        heapq.heappush(self._heap, self._entries[task])

    def discard(self, task: T) -> None:
        """Remove ``task`` if it is in the queue."""
        self._entries.pop(task, None)

    def first(self) -> T | None:
        """The task with the least vruntime."""
        # A task that was discarded or moved has left its old entry in the heap.
        while self._heap and self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def oldest(self) -> T | None:
        """The task that has been in the queue longest."""
        return next(iter(self._entries), None)

    def pop(self) -> T | None:
        """Remove and return the task with the least vruntime."""
        if (task := self.first()) is not None:
            self.advance(task)
            del self._entries[task]
        return task

    def advance(self, running: T | None) -> None:
        """Advance the clock; ``running`` is the task on the CPU."""
        vruntimes = [task.vruntime for task in (running, self.first()) if task is not None]
        if vruntimes:
            self.clock = max(self.clock, min(vruntimes))


def slice_ns(tasks: int, latency_ns: int, min_granularity_ns: int) -> int:
    """The slice with which ``tasks`` tasks each run once within the latency, but at least the minimal granularity."""
    return max(-(-latency_ns // tasks), min_granularity_ns)
