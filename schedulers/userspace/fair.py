# SPDX-License-Identifier: Apache-2.0
"""CPU time in proportion to weight: the vruntime of tasks and cgroups, and queues in the order of vruntime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from ..agents.status_words import CGROUP_WEIGHT_ONE
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
        self.cgroup, self.cgroup_weight = 0, CGROUP_WEIGHT_ONE  # 0: its cgroup is not weighed


T = TypeVar("T", bound=FairTask)


class FairQueue(PriorityQueue[T]):
    """Tasks in order of vruntime, and those of one vruntime in the order of arrival; each task at most once.

    The clock is the least vruntime of the waiting tasks and the running one, and never goes back. A task that arrives
    with less, because it slept or is new, starts at the clock.
    """

    clock = 0

    def charge(self, task: T, runtime_ns: int) -> int:
        """Add the CPU time of ``task`` since the last charge to its vruntime, at the weight that it had at that charge.

        ``runtime_ns`` is the task's CPU time so far; the first charge only records it. Returns the CPU time added.
        """
        ran_ns = 0
        if runtime_ns != task.charged_ns:
            if task.charged_ns is not None:
                ran_ns = runtime_ns - task.charged_ns
                task.vruntime += ran_ns * NICE_0_WEIGHT // task.charged_weight
            task.charged_ns = runtime_ns
        task.charged_weight = task.weight
        return ran_ns

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
        self._advance(None if running is None else running.vruntime)

    def _advance(self, running: int | None) -> None:
        """Advance the clock; ``running`` is the vruntime that counts for the task on the CPU."""
        head = self.head()
        if head is not None and (running is None or head[0] < running):
            self.clock = max(self.clock, head[0])
        elif running is not None:
            self.clock = max(self.clock, running)

    def yield_to_first(self, task: T) -> None:
        """Let another waiting task, if there is one, be before ``task``, which does not wait yet."""
        if (head := self.head()) is not None:
            task.vruntime = max(task.vruntime, head[0])


class _Group(Generic[T]):
    """A cgroup on one CPU: its vruntime, and its waiting tasks, in the order of their own."""

    def __init__(self, vruntime: int) -> None:
        self.vruntime = vruntime
        self.tasks: FairQueue[T] = FairQueue()
        self.first: T | None = None


class GroupedFairQueue(FairQueue[T]):
    """A FairQueue in which all tasks of a weighed cgroup share one vruntime: the cgroup gets the share of one task.

    The vruntime of a cgroup is the CPU time that its tasks have had here, divided by its weight (100: by 1). Among
    themselves, the tasks share by their nice values.
    """

    def __init__(self, queue: FairQueue[T] | None = None) -> None:
        """``queue``, whose tasks are in no cgroup that is weighed, becomes this one."""
        super().__init__()
        self._groups: dict[int, _Group[T]] = {}
        self._firsts: PriorityQueue[T] = PriorityQueue()  # the first task of each group, by the group's vruntime
        self._members: PriorityQueue[T] = PriorityQueue()  # the waiting tasks of groups, by queued_ns
        if queue is not None:
            self.clock = queue.clock
            for task in sorted(queue, key=lambda task: task.queued_ns):  # oldest() needs the order of arrival
                queue.discard(task)
                self.add(task)

    def __len__(self) -> int:
        return super().__len__() + len(self._members)

    def __contains__(self, task: T) -> bool:
        return task in self._members if task.cgroup else super().__contains__(task)

    def __iter__(self) -> Iterator[T]:
        """A snapshot of the tasks, in no order."""
        return iter([*super().__iter__(), *self._members])

    def charge(self, task: T, runtime_ns: int) -> int:
        """Like FairQueue.charge(); the CPU time is added to the vruntime of the task's cgroup, too."""
        ran_ns = super().charge(task, runtime_ns)
        if ran_ns and task.cgroup:
            group = self._group(task.cgroup)
            group.vruntime += ran_ns * CGROUP_WEIGHT_ONE // task.cgroup_weight
            self._rank(group)
        return ran_ns

    def join(self, task: T, cgroup: int, weight: int) -> None:
        """``task`` is in ``cgroup`` (0: none that is weighed) from now on, which has this ``weight``."""
        if task.cgroup != cgroup:
            self.discard(task)
            task.cgroup, task.vruntime = cgroup, 0
        task.cgroup_weight = weight

    def add(self, task: T) -> None:
        """Like FairQueue.add()."""
        if not task.cgroup:
            super().add(task)
            return
        group = self._group(task.cgroup)
        group.vruntime = max(group.vruntime, self.clock)
        group.tasks.add(task)
        self._members.put(task, task.queued_ns)
        self._rank(group)

    def discard(self, task: T) -> None:
        """Remove ``task`` if it is in the queue."""
        if not task.cgroup:
            super().discard(task)
        elif task in self._members:
            group = self._groups[task.cgroup]
            group.tasks.discard(task)
            self._members.discard(task)
            self._rank(group)

    def head(self) -> tuple[int, T] | None:
        """The least vruntime, and the first task that has it or whose cgroup has it."""
        own, first = super().head(), self._firsts.head()
        return first if own is None or (first is not None and first[0] < own[0]) else own

    def oldest(self) -> T | None:
        """The task that has waited longest."""
        own, member = super().oldest(), self._members.head()
        return member[1] if member is not None and (own is None or member[0] < own.queued_ns) else own

    def pop_least(self) -> T | None:
        """Like FairQueue.pop_least()."""
        task = super().pop_least()
        if task is not None and task.cgroup:
            tasks = self._groups[task.cgroup].tasks
            tasks.clock = max(tasks.clock, task.vruntime)
        return task

    def advance(self, running: T | None) -> None:
        """Advance the clock; ``running`` is the task on the CPU."""
        if running is None or not running.cgroup:
            super().advance(running)
            return
        group = self._group(running.cgroup)
        group.tasks.advance(running)
        self._advance(group.vruntime)

    def yield_to_first(self, task: T) -> None:
        """Like FairQueue.yield_to_first(): another task of its cgroup comes first, or else another cgroup does."""
        group = self._group(task.cgroup) if task.cgroup else None
        if group is not None and group.tasks:
            group.tasks.yield_to_first(task)
        elif group is None:
            super().yield_to_first(task)
        elif (head := self.head()) is not None:
            group.vruntime = max(group.vruntime, head[0])

    def _group(self, cgroup: int) -> _Group[T]:
        """That of ``cgroup``. A new one starts at the clock, so each that is not ahead of it and has no task may go."""
        group = self._groups.get(cgroup)
        if group is None:
            needed = ((number, g) for number, g in self._groups.items() if g.tasks or g.vruntime > self.clock)
            self._groups = dict(needed)
            group = self._groups[cgroup] = _Group(self.clock)
        return group

    def _rank(self, group: _Group[T]) -> None:
        """The vruntime or the first task of ``group`` may have changed."""
        head = group.tasks.head()
        first = None if head is None else head[1]
        if group.first is not None and group.first is not first:
            self._firsts.discard(group.first)
        if first is not None:
            self._firsts.put(first, group.vruntime)
        group.first = first


def slice_ns(tasks: int, latency_ns: int, min_granularity_ns: int) -> int:
    """The slice with which ``tasks`` tasks each run once within the latency, but at least the minimal granularity."""
    return max(-(-latency_ns // tasks), min_granularity_ns)
