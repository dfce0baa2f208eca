# SPDX-License-Identifier: Apache-2.0
"""What each task and each CPU did, from the events of a recording.

    timeline = Timeline(events)
    timeline.tasks[4711].waits      # each time the task waited for a CPU
    timeline.runs[0]                # what CPU 0 ran, in order

Events may be missing, be late or contradict each other, as where a recording begins or where the recorder lost some: a
state ends at the latest when another event shows that the task or the CPU is in another. So no state has a negative
length, and those of a task or a CPU do not overlap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .events import (
    COMPLETE,
    PREEMPTED,
    PREEMPTS,
    RUNNABLE,
    TAKEN_OFF,
    Ejected,
    Enclave,
    Event,
    Lost,
    Message,
    Queued,
    Switch,
    Thread,
    Transaction,
    Wakeup,
)

#: Events at one time are read in this order: a task leaves its CPU before it waits.
_ORDER: tuple[type[Event], ...] = (
    Thread,
    Enclave,
    Lost,
    Ejected,
    Message,
    Transaction,
    Wakeup,
    Switch,
    Queued,
)
_RANK = {kind: rank for rank, kind in enumerate(_ORDER)}


@dataclass
class Run:
    """A task on a CPU; ``state`` is in what state it left, -1 if that is not known."""

    since: int
    until: int
    cpu: int
    tid: int
    prio: int
    state: int = -1

    @property
    def ns(self) -> int:
        """How long it took."""
        return self.until - self.since


@dataclass
class Wait:
    """A runnable task without a CPU; ``cpu`` is where it ran then, None if it did not (yet)."""

    queued: Queued
    since: int
    until: int
    cpu: int | None = None
    decision: Transaction | None = None

    @property
    def ns(self) -> int:
        """How long it took."""
        return self.until - self.since


@dataclass
class Task:
    """What one task did; a thread that has ended and a later one with its number are one."""

    tid: int
    tgid: int = 0
    comm: str = "?"
    runs: list[Run] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    migrations: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.comm} ({self.tid})"


class Timeline:
    """The tasks, the CPUs and the enclaves of a recording."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.tasks: dict[int, Task] = {}
        #: What each CPU ran; the idle task is task 0.
        self.runs: dict[int, list[Run]] = {}
        self.transactions: list[Transaction] = []
        self.messages: dict[tuple[int, int], Message] = {}
        self.enclaves: dict[int, list[Enclave]] = {}
        self.lost = 0
        self.ejections: list[Ejected] = []
        self._running: dict[int, Run] = {}
        self._waiting: dict[int, Wait] = {}
        self._decided: dict[int, Transaction] = {}
        self._where: dict[int, int] = {}
        ordered = sorted(events, key=lambda event: (event.at, _RANK[type(event)]))
        scheduling = [event.at for event in ordered if not isinstance(event, (Thread, Enclave))]
        self.since = scheduling[0] if scheduling else 0
        self.until = scheduling[-1] if scheduling else 0
        for event in ordered:
            self._add(event)
        for run in list(self._running.values()):
            self._stop(run, self.until, -1)
        for wait in list(self._waiting.values()):
            self._end_wait(wait, self.until, None)

    @property
    def ns(self) -> int:
        """How long the recording is."""
        return self.until - self.since

    def enclave_at(self, id: int, at: int) -> Enclave | None:
        """The policy and the CPUs of an enclave at a time, as last seen before; the first look if there is none."""
        seen = self.enclaves.get(id)
        if not seen:
            return None
        before = [one for one in seen if one.at <= at]
        return before[-1] if before else seen[0]

    def allowed(self, wait: Wait) -> int:
        """The CPUs on which the task could have run: those of its affinity, and in an enclave, of the enclave."""
        cpus = sum(1 << cpu for cpu in self.runs)
        affinity = cpus if wait.queued.allowed == -1 else wait.queued.allowed & cpus
        enclave = self.enclave_at(wait.queued.enclave, wait.since) if wait.queued.enclave else None
        return (affinity & enclave.cpus or affinity) if enclave else affinity

    def during(self, cpu: int, since: int, until: int) -> Iterator[Run]:
        """The runs on a CPU that overlap a time."""
        runs = self.runs.get(cpu, [])
        first = max(bisect_left(runs, since, key=lambda run: run.since) - 1, 0)
        for run in runs[first:]:
            if run.since >= until:
                return
            if run.until > since:
                yield run

    def preemptor(self, wait: Wait) -> Transaction | None:
        """The agent's transaction that took the CPU from a task that now waits, if one did."""
        if wait.queued.why != TAKEN_OFF:
            return None
        at = bisect_left(self.transactions, wait.since, key=lambda transaction: transaction.at)
        for transaction in reversed(self.transactions[max(at - 16, 0) : at]):
            if transaction.cpu == wait.queued.cpu and transaction.state == COMPLETE and transaction.flags & PREEMPTS:
                return transaction if transaction.gtid == 0 or transaction.tid == wait.queued.other else None
        return None

    def _add(self, event: Event) -> None:
        match event:
            case Switch():
                self._switch(event)
            case Queued():
                self._queue(event)
            case Transaction():
                self.transactions.append(event)
                if event.state == COMPLETE and event.gtid:
                    self._decided[event.tid] = event
            case Message():
                self.messages[event.gtid, event.seq] = event
            case Thread():
                task = self._task(event.tid)
                task.tgid, task.comm = event.tgid, event.comm
            case Enclave():
                self.enclaves.setdefault(event.id, []).append(event)
            case Lost():
                self.lost += event.events
            case Ejected():
                self.ejections.append(event)

    def _task(self, tid: int) -> Task:
        return self.tasks.setdefault(tid, Task(tid))

    def _queue(self, event: Queued) -> None:
        if not event.tid or (event.tid in self._where and event.why not in (TAKEN_OFF, "yielded")):
            return  # the wakeup of a task that has not left its CPU
        if (run := self._running.get(self._where.get(event.tid, -1))) is not None:
            self._stop(run, event.at, -1)  # its switch was lost
        if (wait := self._waiting.get(event.tid)) is not None:
            self._end_wait(wait, event.at, None)  # it ran meanwhile, and that was lost
        self._decided.pop(event.tid, None)
        self._waiting[event.tid] = Wait(event, event.at, event.at)

    def _switch(self, event: Switch) -> None:
        run = self._running.get(event.cpu)
        if run is not None:
            self._stop(run, event.at, event.state if run.tid == event.left else -1)
        if event.left:
            self._task(event.left).comm = event.left_comm  # it may have come before the recording began
        self.runs.setdefault(event.cpu, [])
        if not event.came:
            self._running[event.cpu] = Run(event.at, event.at, event.cpu, 0, event.came_prio)
            return
        if (elsewhere := self._running.get(self._where.get(event.came, -1))) is not None:
            self._stop(elsewhere, event.at, -1)
        task = self._task(event.came)
        task.comm = event.came_comm
        if task.runs and task.runs[-1].cpu != event.cpu:
            task.migrations += 1
        if (wait := self._waiting.get(event.came)) is not None:
            self._end_wait(wait, event.at, event.cpu)
        self._running[event.cpu] = Run(event.at, event.at, event.cpu, event.came, event.came_prio)
        self._where[event.came] = event.cpu

    def _stop(self, run: Run, at: int, state: int) -> None:
        run.until, run.state = at, state
        self.runs.setdefault(run.cpu, []).append(run)
        del self._running[run.cpu]
        if run.tid:
            self._where.pop(run.tid, None)
            self._task(run.tid).runs.append(run)

    def _end_wait(self, wait: Wait, at: int, cpu: int | None) -> None:
        wait.until, wait.cpu = at, cpu
        tid = wait.queued.tid
        wait.decision = self._decided.pop(tid, None)
        del self._waiting[tid]
        self._task(tid).waits.append(wait)


def is_preemption(run: Run) -> bool:
    """Whether a task left its CPU though it could have gone on."""
    return run.state in (RUNNABLE, PREEMPTED)
