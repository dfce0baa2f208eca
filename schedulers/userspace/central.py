# SPDX-License-Identifier: Apache-2.0
"""What Shinjuku and EDF share: one queue for all CPUs, hints, and tasks that make way for more urgent ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from ...hints import ClassFlags, Item, WorkClass
from .policy import AgentPolicy
from .priority_queue import PriorityQueue
from .task import PREEMPT, Task, Transaction

if TYPE_CHECKING:
    from .agent import Agent

#: The class of a task without a hint.
BARE = WorkClass(owner=0, flags=ClassFlags(0), qos=0, exectime_ns=0, period_ns=0)


class HintedTask(Task):
    """A task with what its application hints of it; without a hint it is of the bare class, and always has work."""

    def __init__(self, gtid: int) -> None:
        super().__init__(gtid)
        self.item: Item | None = None
        self.work_class = BARE
        self.has_work = False  # until it is met

    @property
    def qos(self) -> int:
        """More is more urgent."""
        return self.work_class.qos


T = TypeVar("T", bound=HintedTask)


class Running(NamedTuple, Generic[T]):
    """``task`` is on ``cpu`` since then."""

    task: T
    cpu: int
    since_ns: int


class Central(AgentPolicy, Generic[T]):
    """Base of policies for all CPUs whose ``queue`` says who is next, and whose should_preempt() ends turns.

    It goes over the CPUs twice. First those that idle, or whose task has no work left, get the first that wait. Then,
    of the tasks that run, the least urgent make way.
    """

    fastpath = False
    hinted = True
    looks_again = True
    task_type: ClassVar[type[Task]] = HintedTask

    def __init__(self, agent: Agent, queue: PriorityQueue[T], **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = queue
        self.out: dict[T, None] = {}  # committed, and not back yet
        self.parked: dict[T, None] = {}  # wait for a CPU, but have no work
        self.yielded: dict[T, None] = {}  # have whoever waits already go first
        self.timers: PriorityQueue[T] = PriorityQueue()  # those held to whom work comes by itself, by when
        self._known: dict[int, T] = {}  # by tid
        self._items: dict[int, Item] = {}  # by tid
        self._tids: dict[int, int] = {}  # by the item's index
        self._has_begun = False

    # What a policy of this kind says:

    def should_preempt(self, running: Running[T], first: T) -> bool:
        """Whether a task that has work leaves its CPU to the first that waits for it."""
        raise NotImplementedError

    def comes_again_ns(self, task: T) -> int:
        """When work comes to ``task``, of a repeating class, again."""
        raise NotImplementedError

    def begin(self, task: T) -> None:
        """A piece of work comes to ``task``."""

    def end(self, task: T) -> None:
        """It is done."""

    def renew(self, task: T) -> None:
        """``task`` has another hint, and work as before."""

    # What is told:

    def enqueue(self, task: Any) -> None:
        self.dequeue(task)
        if self._known.get(task.tid) is not task:
            self._meet(task)
        if task.has_work:
            self.queue.add(task)
            return
        self.parked[task] = None
        if task.work_class.repeating:
            self.timers.put(task, self.comes_again_ns(task))

    def dequeue(self, task: Any) -> None:
        self.queue.discard(task)
        self.timers.discard(task)
        for place in (self.out, self.parked, self.yielded):
            place.pop(task, None)

    def on_task_yield(self, task: Any) -> None:
        self.dequeue(task)
        self.yielded[task] = None

    def on_task_dead(self, task: Any) -> None:
        self.dequeue(task)
        self._known.pop(task.tid, None)

    on_task_departed = on_task_dead

    def _meet(self, task: T) -> None:
        self._known[task.tid] = task
        if (item := self._items.get(task.tid)) is not None:
            self._take(task, item)
            return
        task.has_work = True
        self.begin(task)

    # What is hinted:

    def _read_hints(self) -> None:
        for index, item in self.agent.hints.updates():
            before = self._tids.get(index, 0)
            self._tids[index] = item.tid
            if before not in (0, item.tid):
                self._hint(before, None)
            if item.tid:
                self._hint(item.tid, item)

    def _hint(self, tid: int, item: Item | None) -> None:
        if item is None:
            self._items.pop(tid, None)
        else:
            self._items[tid] = item
        if tid in self._known:
            self._take(self._known[tid], item)

    def _take(self, task: T, item: Item | None) -> None:
        had, is_new = task.has_work, item != task.item
        task.item = item
        task.work_class = BARE if item is None else self.agent.hints.work_class(item.work_class)
        if is_new:
            task.has_work = item is None or item.runnable
            if task.has_work:
                (self.renew if had else self.begin)(task)
            elif had:
                self.end(task)
        if task in self.queue and task.has_work:
            self.queue.add(task)
        elif task in self.queue or task in self.parked:
            self.enqueue(task)

    def _ring_alarms(self) -> None:
        now = time.monotonic_ns()
        while (head := self.timers.head()) and head[0] <= now:
            task = head[1]
            task.has_work = True
            self.begin(task)
            self.enqueue(task)
        if head:
            self.call_at(head[0])

    # What follows:

    def schedule(self) -> Iterator[Transaction]:
        self.due_ns = 0
        self._read_hints()
        self._ring_alarms()
        if not self._has_begun:
            self._has_begun = True
            # Another has committed those that run: they make way once, and are known from then on.
            yield from (Transaction(None, cpu, flags=PREEMPT) for cpu in self.agent.busy_cpus())
        idle = self.agent.idle_cpus()
        yield from self._fill(idle)
        if self.queue or self._items:
            yield from self._make_way()
        for task in list(self.yielded):
            self.enqueue(task)
        yield from self._fill(idle)

    def call_at(self, ns: int) -> None:
        """Have schedule() called then, if not before."""
        self.due_ns = min(self.due_ns or ns, ns)

    def _fill(self, idle: list[int]) -> Iterator[Transaction]:
        for cpu in list(idle):
            if (task := self.queue.pop(cpu)) is not None:
                idle.remove(cpu)
                yield self._run(task, cpu)

    def _make_way(self) -> Iterator[Transaction]:
        for running in sorted(self._running(), key=lambda r: (r.task.has_work, r.task.qos, r.since_ns)):
            task, cpu, _ = running
            first = self.queue.first(cpu)
            if first is not None and (not task.has_work or self.should_preempt(running, first)):
                self.queue.discard(first)
                yield self._run(first, cpu, PREEMPT)
            elif not task.has_work:
                self.out.pop(task, None)
                yield Transaction(None, cpu, flags=PREEMPT)

    def _run(self, task: T, cpu: int, flags: int = 0) -> Transaction:
        self.out[task] = None
        return Transaction(task, cpu, flags=flags)

    def _running(self) -> list[Running[T]]:
        """Who is on the CPUs for which nothing is committed."""
        busy = set(self.agent.busy_cpus())
        found = self._on_cpus(self.out, busy)
        if self.parked and len(found) < len(busy):  # the core lets no task wait for ever, whatever its agent says
            found += self._on_cpus(self.parked, busy)
        return found

    def _on_cpus(self, tasks: dict[T, None], cpus: set[int]) -> list[Running[T]]:
        places = ((task, self.agent.status_words.on_cpu(task)) for task in tasks)
        return [Running(task, *place) for task, place in places if place and place[0] in cpus]
