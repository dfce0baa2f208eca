# SPDX-License-Identifier: Apache-2.0
"""The base of Shinjuku and EDF: one agent, one queue for all CPUs, hints, and preemption by more urgent tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from ...hints import ClassFlags, Item, WorkClass
from ..agents.task import PREEMPT, Task, Transaction
from .agent import Agent
from .policy import AgentPolicy
from .priority_queue import PriorityQueue
from .run_queue import RunQueue

#: The class of a task without a hint.
BARE = WorkClass(owner=0, flags=ClassFlags(0), qos=0, exectime_ns=0, period_ns=0)


class HintedTask(Task):
    """A task with its application's hint. A task without a hint is of the class BARE, and always has work."""

    def __init__(self, gtid: int) -> None:
        super().__init__(gtid)
        self.item: Item | None = None
        self.work_class = BARE
        self.has_work = False  # until it is enqueued for the first time

    @property
    def qos(self) -> int:
        """A higher QoS is more urgent."""
        return self.work_class.qos


T = TypeVar("T", bound=HintedTask)


class Running(NamedTuple, Generic[T]):
    """``task`` has run on ``cpu`` since ``since_ns``."""

    task: T
    cpu: int
    since_ns: int


class Central(AgentPolicy, Generic[T]):
    """Base of policies with one ``queue`` for all CPUs, in which should_preempt() says when a running task must leave.

    schedule() goes over the CPUs twice. First, each idle CPU gets the first waiting task. Then each running task that
    has no work, or that should_preempt() names, the least urgent first, leaves its CPU to the first waiting task.

    A task with a hint that says that it has no work is parked: it waits for a CPU, but is not in the queue. A task of a
    repeating class gets work again by a timer, any other by its next hint.
    """

    fastpath = False
    hinted = True
    task_type: ClassVar[type[Task]] = HintedTask

    def __init__(self, agent: Agent, queue: PriorityQueue[T], **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = queue
        self.committed = RunQueue()  # and not enqueued since
        self.parked = RunQueue()
        self.yielded = RunQueue()  # enqueued after the tasks that wait already got their CPUs
        self._hints = agent.hints
        self._fill_idle = agent.fill_idle(queue, self.committed)
        self.timers: PriorityQueue[T] = PriorityQueue()  # parked tasks of repeating classes, by when work comes
        self._known: dict[int, T] = {}  # by tid
        self._items: dict[int, Item] = {}  # by tid
        self._tids: dict[int, int] = {}  # by the item's index
        self._has_begun = False

    # What each policy of this kind defines:

    def should_preempt(self, running: Running[T], first: T) -> bool:
        """Whether a running task that has work must leave its CPU to ``first``, the first waiting task."""
        raise NotImplementedError

    def next_work_ns(self, task: T) -> int:
        """When ``task``, of a repeating class, gets work again."""
        raise NotImplementedError

    def begin_work(self, task: T) -> None:
        """``task`` gets a piece of work."""

    def end_work(self, task: T) -> None:
        """``task`` has done its piece of work."""

    def change_work(self, task: T) -> None:
        """``task``, which had work, gets another hint, by which it has work too."""

    # Messages:

    def enqueue(self, task: Any) -> None:
        self.dequeue(task)
        if self._known.get(task.tid) is not task:
            self._add_task(task)
        if task.has_work:
            self.queue.add(task)
            return
        self.parked.add(task)
        if task.work_class.repeating:
            self.timers.put(task, self.next_work_ns(task))

    dequeue = staticmethod(Task.leave_queues)  # type: ignore[assignment]

    def on_task_yield(self, task: Any) -> None:
        self.dequeue(task)
        self.yielded.add(task)

    def on_task_dead(self, task: Any) -> None:
        self.dequeue(task)
        self._known.pop(task.tid, None)

    on_task_departed = on_task_dead

    def _add_task(self, task: T) -> None:
        self._known[task.tid] = task
        if (item := self._items.get(task.tid)) is not None:
            self._apply(task, item)
            return
        task.has_work = True
        self.begin_work(task)

    # Hints:

    def _read_hints(self, updates: list[tuple[int, Item]]) -> None:
        for index, item in updates:
            before = self._tids.get(index, 0)
            self._tids[index] = item.tid
            if before not in (0, item.tid):
                self._set_item(before, None)
            if item.tid:
                self._set_item(item.tid, item)

    def _set_item(self, tid: int, item: Item | None) -> None:
        if item is None:
            self._items.pop(tid, None)
        else:
            self._items[tid] = item
        if tid in self._known:
            self._apply(self._known[tid], item)

    def _apply(self, task: T, item: Item | None) -> None:
        had_work, is_new = task.has_work, item != task.item
        task.item = item
        task.work_class = BARE if item is None else self._hints.work_class(item.work_class)
        if is_new:
            task.has_work = item is None or item.runnable
            if task.has_work:
                (self.change_work if had_work else self.begin_work)(task)
            elif had_work:
                self.end_work(task)
        if task in self.queue and task.has_work:
            self.queue.add(task)
        elif task in self.queue or task in self.parked:
            self.enqueue(task)

    def _run_timers(self) -> None:
        now = time.monotonic_ns()
        while (head := self.timers.head()) and head[0] <= now:
            task = head[1]
            task.has_work = True
            self.begin_work(task)
            self.enqueue(task)
        if head:
            self.schedule_at(head[0])

    # Decisions:

    def schedule(self) -> list[Transaction]:
        self.due_ns = 0
        if updates := self._hints.updates():
            self._read_hints(updates)
        if self.timers:
            self._run_timers()
        decided = self._fill_idle()
        if not self._has_begun:
            self._has_begun = True
            # The previous agent committed the tasks that run now. Once preempted, this policy knows them.
            decided += [Transaction(None, cpu, flags=PREEMPT) for cpu in self.agent.busy_cpus()]
        if self.queue or self._items:
            decided += self._preempt()
        if self.yielded:
            decided += self._fill_with_yielded({transaction.cpu for transaction in decided})
        # The tasks committed now run only then, and those that wait may preempt them.
        self.looks_again = bool(self.queue)
        return decided

    def schedule_at(self, ns: int) -> None:
        """Have schedule() called at ``ns`` of CLOCK_MONOTONIC, or earlier."""
        self.due_ns = min(self.due_ns or ns, ns)

    def _preempt(self) -> Iterator[Transaction]:
        for running in sorted(self._running(), key=lambda r: (r.task.has_work, r.task.work_class.qos, r.since_ns)):
            task, cpu, _ = running
            first = self.queue.first(cpu)
            if first is not None and (not task.has_work or self.should_preempt(running, first)):
                yield self._run(first, cpu, PREEMPT)
            elif not task.has_work:
                self.committed.discard(task)
                yield Transaction(None, cpu, flags=PREEMPT)

    def _fill_with_yielded(self, taken: set[int]) -> Iterator[Transaction]:
        for task in list(self.yielded):
            self.enqueue(task)
        for cpu in self.agent.idle_cpus():
            if cpu not in taken and (first := self.queue.first(cpu)) is not None:
                yield self._run(first, cpu)

    def _run(self, task: T, cpu: int, flags: int = 0) -> Transaction:
        self.queue.discard(task)
        self.committed.add(task)
        return Transaction(task, cpu, flags=flags)

    def _running(self) -> list[Running[T]]:
        """The tasks that run on CPUs with nothing committed."""
        busy = set(self.agent.busy_cpus())
        running = self._on_cpus(self.committed, busy)
        # The core runs a task that has waited for seconds, even a parked one.
        if self.parked and len(running) < len(busy):
            running += self._on_cpus(self.parked, busy)
        return running

    def _on_cpus(self, tasks: RunQueue, cpus: set[int]) -> list[Running[T]]:
        places = ((task, self.agent.status_words.on_cpu(task)) for task in tasks)
        return [Running(cast(T, task), *place) for task, place in places if place and place[0] in cpus]
