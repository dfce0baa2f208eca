# SPDX-License-Identifier: Apache-2.0
"""CPU time in proportion to weight: the vruntime of tasks, and a queue in its order; of no kernel does it know."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

NICE_0_WEIGHT = 100


class Fair(Protocol):
    """What the queue has to know of a task."""

    vruntime: int


T = TypeVar("T", bound=Fair)


class Account:
    """The vruntime of one task: the CPU time that it has had, in ns, divided by its weight (nice 0: by 1)."""

    def __init__(self) -> None:
        self.vruntime, self.weight_then = 0, NICE_0_WEIGHT
        self.charged_ns: int | None = None

    def charge(self, runtime_ns: int, weight: int) -> None:
        """Count what it ran since the last charge, by the weight that it had then; ``weight`` counts from now on.

        ``runtime_ns`` is all that it ever ran; the first charge only notes that.
        """
        if self.charged_ns is not None:
            self.vruntime += (runtime_ns - self.charged_ns) * NICE_0_WEIGHT // self.weight_then
        self.charged_ns, self.weight_then = runtime_ns, weight


class FairQueue(Generic[T]):
    """Tasks in order of vruntime, and among equals in that of their coming; each is in it once.

    Its clock is the least vruntime of those that wait and of the one that runs, and never goes back. Who comes with
    less than that, since it slept or is new, begins there.
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
        """The tasks in it now, in the order of their coming."""
        return iter(tuple(self._entries))

    def add(self, task: T) -> None:
        """Put ``task`` where its vruntime belongs, also if it is in already."""
        task.vruntime = max(task.vruntime, self.clock)
        self._entries.pop(task, None)
        self._entries[task] = (task.vruntime, next(self._numbers), task)
        heapq.heappush(self._heap, self._entries[task])

    def discard(self, task: T) -> None:
        """Out of it, wherever it is."""
        self._entries.pop(task, None)

    def first(self) -> T | None:
        """The one with the least vruntime."""
        # What was discarded, or added anew, has left its entry in the heap.
        while self._heap and self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def oldest(self) -> T | None:
        """The one that has been in it longest."""
        return next(iter(self._entries), None)

    def pop(self) -> T | None:
        """Take the one with the least vruntime."""
        if (task := self.first()) is not None:
            self.advance(task)
            del self._entries[task]
        return task

    def advance(self, running: T | None) -> None:
        """Set the clock, with ``running`` on the CPU."""
        there = [task.vruntime for task in (running, self.first()) if task is not None]
        if there:
            self.clock = max(self.clock, min(there))


def slice_ns(tasks: int, latency_ns: int, min_granularity_ns: int) -> int:
    """How long one of ``tasks`` runs at a time: all have a turn within the latency, if no turn is too short then."""
    return max(-(-latency_ns // tasks), min_granularity_ns)
