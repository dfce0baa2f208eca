# SPDX-License-Identifier: Apache-2.0
"""Moving tasks into an enclave by rule: existing tasks and new ones.

    with ProcessEvents() as events:
        for outcome in AutoJoin(enclave, Rule(comms=("nginx*",)), events).follow(stop):
            print(outcome)

The kernel's process events say when to check a task; /proc then says whether it matches, so a late event does no harm.
After lost events all tasks are scanned. No event reports a move between cgroups: a rule's cgroups are scanned
periodically. Without any events all tasks are.

This process and the agents of enclaves never join: an agent must not wait for the tasks that it schedules.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import pids
from .agents import Agents, set_agent_class
from .core import locked
from .enclave import Enclave, Enclaves
from .errors import NoSuchEnclave, TaskError
from .processes import ProcTask, Rule
from .tasks import SCHED_EXT, policy_of, threads

if TYPE_CHECKING:
    from .process_events import ProcessEvent, ProcessEvents


@dataclass(frozen=True)
class Outcome:
    """Task ``tid`` joined, or could not for ``error``; ``cause`` is the event, or "scan", that led to it."""

    tid: int
    pid: int
    comm: str
    cause: str
    error: str | None = None


class AutoJoin:
    """Moves tasks that match ``rule`` into ``enclave``, on ``events`` and by a scan every ``period`` seconds."""

    def __init__(self, enclave: Enclave, rule: Rule, events: ProcessEvents | None = None, *, period: float = 1.0):
        self.enclave, self.rule, self._events, self._period = enclave, rule, events, period
        #: How often events were lost, and all tasks were scanned for that.
        self.resyncs = 0
        # When each task joined, or should have: its later children are in the enclave as well.
        self._since: dict[int, int] = {}
        self._refused: set[int] = set()

    def once(self) -> Iterator[Outcome]:
        """Move the tasks that match now, until a scan finds no new one: a fork under way shows its child later."""
        seen: set[int] = set()
        forking: set[int] = set()
        while (new := [outcome for outcome in self.scan() if outcome.tid not in seen]) or forking:
            yield from new
            tids = {outcome.tid for outcome in new}
            seen |= tids
            forking = self.enclave.core.forking() & (forking | tids)

    def follow(self, stop: int) -> Iterator[Outcome]:
        """Move existing and new tasks until ``stop`` is readable; raises NoSuchEnclave when the enclave is gone."""
        fds = [stop] if self._events is None else [stop, self._events.fileno()]
        yield from self.scan()
        scanned = time.monotonic()
        while stop not in (ready := select.select(fds, [], [], self._period)[0]):
            if ready:
                yield from self.handle()
            if time.monotonic() - scanned >= self._period:
                self._check()
                if self._events is None or self.rule.cgroups:
                    yield from self.scan()
                scanned = time.monotonic()

    def scan(self, cause: str = "scan") -> Iterator[Outcome]:
        """Check every task."""
        now = time.monotonic_ns()
        inside = self._inside()
        self._since = dict.fromkeys(inside, now)
        candidates = self.rule.candidates()
        self._refused &= candidates
        yield from self._join({tid: cause for tid in candidates - inside if self.rule.fits_now(tid, candidates)})

    def handle(self) -> Iterator[Outcome]:
        """Check the tasks for which events have come."""
        assert self._events is not None
        events, lost = self._events.read()
        inside = self._inside()
        children = set()
        for event in events:
            if event.kind == "exit":
                self._forget(event.tid)
            elif self._inherits(event):
                children.add(event.tid)
        causes = {tid: cause for tid, cause in _causes(events).items() if tid not in inside}
        # One walk over the cgroups for all these tasks, and none if only children of members are new.
        members = self.rule.candidates() if self.rule.cgroups and causes.keys() - children else None
        fits = {tid for tid in causes if tid in children or self.rule.fits_now(tid, members)}
        yield from self._join({tid: cause for tid, cause in causes.items() if tid in fits})
        if lost:
            self.resyncs += 1
            yield from self.scan("resync")

    def _inherits(self, event: ProcessEvent) -> bool:
        """Whether it is a fork by a member; a fork that began before its task joined leaves the child outside."""
        since = self._since.get(event.parent)
        if since is None or since > event.at_ns or policy_of(event.parent) not in (SCHED_EXT, None):
            return False
        self._since[event.tid] = since
        return True

    def _forget(self, tid: int) -> None:
        self._since.pop(tid, None)
        self._refused.discard(tid)

    def _join(self, causes: dict[int, str]) -> Iterator[Outcome]:
        if not causes:
            return
        outcomes = []
        with locked():
            self._check()
            excluded = {os.getpid()} | _agents(self.enclave)
            for tid, cause in causes.items():
                try:
                    task = ProcTask(tid)
                    if task.pid not in excluded:
                        outcomes.append(self._add(task, cause))
                except OSError:
                    self._since.pop(tid, None)  # it has ended
            # A task that became an agent meanwhile left the class, but perhaps before it was moved in here.
            for tid in _agents(self.enclave) & causes.keys():
                with contextlib.suppress(TaskError):
                    set_agent_class(tid, self.enclave.core)
        yield from (outcome for outcome in outcomes if outcome is not None)

    def _add(self, task: ProcTask, cause: str) -> Outcome | None:
        pid, comm, error = task.pid, task.comm, None
        self._since.setdefault(task.tid, time.monotonic_ns())
        try:
            self.enclave.add(task.tid)
        except TaskError as refusal:
            self._since.pop(task.tid, None)
            if policy_of(task.tid) is None or task.tid in self._refused:
                return None
            self._refused.add(task.tid)
            error = refusal.reason
        return Outcome(task.tid, pid, comm, cause, error)

    def left_out(self) -> dict[int, str]:
        """The names of the processes that match and are not in the enclave, by pid.

        Agents, this process and its ancestors are excluded. Only the first thread of a process is checked.
        """
        excluded = {os.getpid(), *ProcTask(os.getpid()).ancestors} | _agents(self.enclave) | self._inside()
        names = {}
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
            if pid not in excluded and self.rule.fits_now(pid):
                with contextlib.suppress(OSError):
                    names[pid] = ProcTask(pid).comm
        return names

    def _inside(self) -> set[int]:
        return {task.tid for task in self.enclave.tasks()}

    def _check(self) -> None:
        if self.enclave not in Enclaves(self.enclave.core):
            raise NoSuchEnclave(self.enclave.id)


def _causes(events: Iterable[ProcessEvent]) -> dict[int, str]:
    """The tasks to check, each with its event; an event of a process counts for all its threads."""
    causes: dict[int, str] = {}
    for event in events:
        if event.kind == "exit":
            causes.pop(event.tid, None)
        else:
            tids = threads(event.pid) if event.tid == event.pid else {event.tid}
            causes.update(dict.fromkeys(tids, event.kind))
    return causes


def _agents(enclave: Enclave) -> set[int]:
    """The agents of all enclaves that are in this process's pid namespace."""
    all_agents = (Agents.open(other.id) for other in Enclaves(enclave.core))
    tids = (
        int(channel.tid) for agents in all_agents if agents is not None for channel in agents.channels if channel.tid
    )
    return set(pids.to_local(tids).values())
