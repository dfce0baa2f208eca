# SPDX-License-Identifier: Apache-2.0
"""ghOSt's cfs: the completely fair scheduler, with an agent for each CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..policy import Option, duration_ns
from .cpus import CpuFlags
from .fair import Account, FairQueue, slice_ns
from .policy import AgentPolicy, flag
from .task import WAITING, Task, Transaction

if TYPE_CHECKING:
    from .agent import Agent

_MOST_AT_ONCE = 32
#: In place of a CPU: the agent that hands tasks out, and keeps one that may run nowhere yet.
_PLACER = -1
#: Less than the core's own, which lets whoever waits have a CPU, and far less than the kernel's, which ends schedulers.
_PATIENCE_NS = 3_000_000_000


class FairTask(Task, Account):
    """A task with its vruntime, which is one of its CPU's and begins anew with each agent."""

    def __init__(self, gtid: int) -> None:
        Task.__init__(self, gtid)
        Account.__init__(self)
        self.queued_ns = 0  # when it was enqueued; CLOCK_MONOTONIC


class Cfs(AgentPolicy):
    """CPU time by nice value: the completely fair scheduler, an agent for each CPU.

    Each CPU has a queue in order of vruntime, the CPU time that a task has had by its weight, and runs the first. A
    task that others wait for has a slice of the latency divided by their number, and of the minimal granularity at
    least; a tick of the kernel's ends it, so that the agent need not be asked at each tick. Who wakes preempts nobody:
    one that the agent, or another class, interrupts in its slice goes on with the rest of it. Who is new, or has slept,
    begins with the least vruntime there is. A task that yields lets the next have a turn, whatever each has had. And
    who has waited for 3 s (nice 19 beside nice -20, for one) is next.

    New tasks go where fewest are; one that wakes while its CPU is busy, to an idle CPU. A CPU with nothing to do takes
    half of those that wait for the busiest, unless --idle-balancing no.

    A task's weight is that of its nice value; a cgroup's cpu.weight is no part of it.

    Good for: nice values, hogs beside tasks that sleep. Not good for: CPU-bound work that could do without switches
    (each costs an agent's turn; cfs_bpf does the same in BPF), and shares across CPUs.

    Unlike in ghOSt's cfs, a CPU that runs a task is not taken for empty because nobody waits for it, nobody is
    preempted while nobody waits, and a yield yields.
    """

    name = "cfs"
    options = (
        Option("latency", "latency_ns", duration_ns, "10ms", "in which each of a CPU's tasks is to run once"),
        Option("min-granularity", "min_granularity_ns", duration_ns, "1ms", "but none for less than this"),
        flag("idle-balancing", "balances", "yes: a CPU with nothing to do takes tasks that wait for others", "yes"),
    )
    per_cpu = True
    fastpath = False
    task_type = FairTask
    latency_ns: int
    min_granularity_ns: int
    balances: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue: FairQueue[FairTask] = FairQueue()
        self.current: FairTask | None = None
        self.picked_ns = 0  # what the current one had run when its slice began
        self._rings = () if agent.cpu is None else agent.topology.neighbours(agent.cpu)
        self._flags = CpuFlags(agent.enclave, tuple(agent.enclave.cpus))

    def enqueue(self, task: Task) -> None:
        assert isinstance(task, FairTask)
        task.charge(task.runtime_ns, task.weight)
        cpus = () if self.agent.may_run(task, self._here) else self._elsewhere(task)
        if cpus or not task.may_run_on(self._here):
            self.dequeue(task)
            self.agent.associate(task, self.place(task, cpus) if cpus else _PLACER)
        else:
            task.queued_ns = task.since_ns
            self._set_clock()
            self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        assert isinstance(task, FairTask)
        task.charge(task.runtime_ns, task.weight)
        self.queue.discard(task)
        if task is self.current:
            self.current = None

    def on_task_new(self, task: Task) -> None:
        """What it ran elsewhere does not count."""
        assert isinstance(task, FairTask)
        task.charged_ns = None
        self.enqueue(task)

    def on_task_wakeup(self, task: Task) -> None:
        """It runs at once where a CPU is idle, by preference where it was, or near."""
        if self._is_busy(task) and (cpus := self._idle_elsewhere(task)):
            near = (cpu for ring in self._rings for cpu in ring if cpu in cpus)
            self.agent.associate(task, task.cpu if task.cpu in cpus else next(near, min(cpus)))
        else:
            self.enqueue(task)

    def on_task_yield(self, task: Task) -> None:
        """Whoever is first goes first, though it may have had more."""
        assert isinstance(task, FairTask)
        task.charge(task.runtime_ns, task.weight)
        if (first := self.queue.first()) is not None:
            task.vruntime = max(task.vruntime, first.vruntime)
        self.enqueue(task)

    def on_priority_changed(self, task: Task) -> None:
        """What it ran before counts by its old weight."""
        assert isinstance(task, FairTask)
        task.charge(task.runtime_ns, task.weight)

    def on_affinity_changed(self, task: Task) -> None:
        """A task that may not run here any more goes to another CPU's agent."""
        if task.state == WAITING:
            self.dequeue(task)
            self.enqueue(task)

    def place(self, task: Task, cpus: tuple[int, ...]) -> int:
        """Where fewest tasks run or wait; by preference where it was."""
        loads = self.agent.loads()
        return min(cpus, key=lambda cpu: (not self.agent.may_run(task, cpu), loads.get(cpu, 0), cpu != task.cpu))

    def schedule(self) -> Iterator[Transaction]:
        if not self.agent.is_online(self._here):
            # No message tells of that.
            for waiting in self.queue:
                self.on_affinity_changed(waiting)
        for cpu in self.agent.idle_cpus():
            if (task := self._next()) is not None:
                left_ns = self._slice_ns(1 + len(self.queue)) - (task.runtime_ns - self.picked_ns)
                yield Transaction(task, cpu, left_ns if self.queue else 0)
            elif self.balances:
                self._pull()

    def _next(self) -> FairTask | None:
        """The current task, if it was interrupted in its slice, or else the first."""
        if (task := self.current) is not None and self._is_interrupted(task):
            self.queue.discard(task)
            return task
        while (task := self._starving() or self.queue.pop()) is not None and not self._waits_here(task):
            pass
        self.current, self.picked_ns = task, task.runtime_ns if task is not None else 0
        return task

    def _starving(self) -> FairTask | None:
        """Take the task that has waited longest, if that is too long."""
        task = self.queue.oldest()
        if task is None or time.monotonic_ns() - task.queued_ns < _PATIENCE_NS:
            return None
        self.queue.discard(task)
        return task

    def _pull(self) -> None:
        """Half of those that wait for the CPU with most tasks become this agent's, and come as new ones."""
        loads = self.agent.loads()
        loads.pop(self._here, None)
        busiest = max(loads, key=loads.__getitem__, default=None)
        if busiest is not None and loads[busiest] > 1:
            self.agent.take(min(loads[busiest] // 2, _MOST_AT_ONCE), busiest)

    def _set_clock(self) -> None:
        """By what the current task has run, too, though no message may have told of that yet."""
        if (task := self.current) is not None and task not in self.queue:
            word = self.agent.status_words[task.word]
            if word.gtid == task.gtid:
                task.charge(word.runtime_ns, task.weight)
        self.queue.advance(task)

    @property
    def _here(self) -> int:
        assert self.agent.cpu is not None
        return self.agent.cpu

    def _slice_ns(self, tasks: int) -> int:
        return slice_ns(tasks, self.latency_ns, self.min_granularity_ns)

    def _is_busy(self, task: Task) -> bool:
        """Whether others than ``task`` want this CPU."""
        return bool(self.queue) or self.current not in (None, task)

    def _is_interrupted(self, task: FairTask) -> bool:
        """Whether it had its CPU taken away in its slice, and waits for it here."""
        if not task.boosted or task not in self.queue or not self._waits_here(task):
            return False
        return task.runtime_ns - self.picked_ns < self._slice_ns(len(self.queue))

    def _waits_here(self, task: Task) -> bool:
        """Whether it still does; one that another agent has taken is forgotten, so that it may come back as new."""
        word = self.agent.status_words[task.word]
        if word.gtid == task.gtid and word.channel == 1 + self._here:
            return self.agent.waits(task)
        self.agent.tasks.pop(task.gtid, None)
        self.dequeue(task)
        return False

    def _idle_elsewhere(self, task: Task) -> tuple[int, ...]:
        """The other CPUs that ``task`` may run on, and that nobody else runs on or waits for."""
        loads = self.agent.loads()
        if all(loads.values()):
            return ()
        idle = self._flags.idle()
        return tuple(cpu for cpu in self._elsewhere(task) if loads.get(cpu) == 0 and cpu in idle)

    def _elsewhere(self, task: Task) -> tuple[int, ...]:
        """The other CPUs with an agent that ``task`` may run on."""
        return tuple(cpu for cpu in self.agent.agent_cpus() if cpu != self._here and self.agent.may_run(task, cpu))
