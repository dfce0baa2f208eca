# SPDX-License-Identifier: Apache-2.0
"""CPU time in proportion to weight: the vruntime of tasks, and a queue in the order of vruntime."""

from __future__ import annotations

from typing import TypeVar

from ..agents.task import Task
from .priority_queue import PriorityQueue

NICE_0_WEIGHT = 100


class FairTask(Task):
    """A task with its vruntime, which counts on one CPU, and starts anew with each agent.

    The vruntime is the CPU time that the task has had, in ns, divided by its weight (nice 0: by 1).
    """

    def __init__(self, gtid: int) -> None:
        super().__init__(gtid)
        self.vruntime, self.charged_weight = 0, NICE_0_WEIGHT
        self.charged_ns: int | None = None
        self.queued_ns = 0  # when it was enqueued; CLOCK_MONOTONIC

    def charge(self, runtime_ns: int, weight: int) -> None:
        """Add the CPU time since the last charge, at the weight of that time; ``weight`` counts from now on.

        ``runtime_ns`` is the task's CPU time so far; the first charge only records it.
        """
        if runtime_ns != self.charged_ns:
            if self.charged_ns is not None:
                self.vruntime += (runtime_ns - self.charged_ns) * NICE_0_WEIGHT // self.charged_weight
            self.charged_ns = runtime_ns
        self.charged_weight = weight


T = TypeVar("T", bound=FairTask)


class FairQueue(PriorityQueue[T]):
    """Tasks in order of vruntime, and those of one vruntime in the order of arrival; each task at most once.

    The clock is the least vruntime of the waiting tasks and the running one, and never goes back. A task that arrives
    with less, because it slept or is new, starts at the clock.
    """

    clock = 0

    def add(self, task: T) -> None:
        """Insert ``task`` at its vruntime, or move it there if it is in the queue."""
        if task.vruntime < self.clock:
            task.vruntime = self.clock
        self.put(task, task.vruntime)

    def pop_least(self) -> T | None:
        """Remove and return the task with the least vruntime."""
        if (head := self.head()) is None:
            return None
        vruntime, task = head
        if vruntime > self.clock:
            self.clock = vruntime
        self.discard(task)
        return task

    def advance(self, running: T | None) -> None:
        """Advance the clock; ``running`` is the task on the CPU."""
        head = self.head()
        if head is not None and (running is None or head[0] < running.vruntime):
            self.clock = max(self.clock, head[0])
        elif running is not None:
            self.clock = max(self.clock, running.vruntime)


def slice_ns(tasks: int, latency_ns: int, min_granularity_ns: int) -> int:
    """The slice with which ``tasks`` tasks each run once within the latency, but at least the minimal granularity."""
    return max(-(-latency_ns // tasks), min_granularity_ns)
