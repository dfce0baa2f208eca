# SPDX-License-Identifier: Apache-2.0
"""ghOSt's cfs: the completely fair scheduler, with an agent for each CPU."""

from __future__ import annotations

import time
from typing import Any

from ..agents.task import WAITING, Task, Transaction
from ..policy import Option, duration_ns
from .agent import Agent
from .fair import FairQueue, FairTask, GroupedFairQueue, slice_ns
from .options import flag
from .policy import AgentPolicy

_PULL_LIMIT = 32
#: In place of a CPU: the enclave's agent, which keeps a task until a CPU that the task may use has an agent.
_ASSIGNER = -1
#: A task that has waited for longer is next. The core runs such a task after some more seconds without asking the
#: agent, and the kernel ends a scheduler that lets a task wait for 30 s.
_WAIT_TIMEOUT_NS = 3_000_000_000


class Cfs(AgentPolicy):
    """CPU time by nice value: the completely fair scheduler, an agent for each CPU.

    Each CPU has a queue in the order of vruntime, a task's CPU time divided by its weight, and runs the first task. If
    others wait, the slice is the latency divided by the number of tasks, but at least the minimal granularity; a tick
    of the kernel ends it, so the agent need not decide at each tick. A task that wakes preempts no other. A task that
    the agent or another class interrupts in its slice runs next, for the rest of the slice. A task that is new, or has
    slept, starts at the least vruntime of the CPU. A task that yields lets the next one run, however much CPU time
    either has had. A task that has waited for 3 s (nice 19 beside nice -20, for example) is next.

    A new task goes to the CPU with the fewest tasks; a task that wakes while its CPU is busy goes to an idle CPU. A CPU
    with nothing to do takes half of the tasks that wait for the busiest CPU, unless --idle-balancing no.

    From the first message of a task in a cgroup with a cpu.weight (or cpu.idle) of its own on, all tasks of a cgroup
    share a vruntime on each CPU, by the weight of the cgroup, the product of its own and of those above it. So it gets
    its share whatever the number of its tasks, which share by their nice values. A task that changes its cgroup starts
    at the least vruntime there. A new cgroup or weight counts when the task begins to wait, after its slice at most.

    Good for nice values, and for tasks that compute beside tasks that sleep. Not good for tasks that compute and need
    no turns (each switch costs a turn of an agent; cfs_bpf does the same in BPF), nor for fair shares across CPUs.

    Unlike in ghOSt's cfs, a CPU that runs a task counts as busy even if no task waits there, no slice ends while no
    task waits, and a yield yields.
    """

    name = "cfs"
    options = (
        Option("latency", "latency_ns", duration_ns, "10ms", "the time in which each task of a CPU runs once"),
        Option("min-granularity", "min_granularity_ns", duration_ns, "1ms", "the shortest slice"),
        flag("idle-balancing", "balances", "yes: a CPU with nothing to do takes tasks that wait for others", "yes"),
    )
    per_cpu = True
    fastpath = False
    weighs_cgroups = True
    task_type = FairTask
    latency_ns: int
    min_granularity_ns: int
    balances: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue: FairQueue[FairTask] | GroupedFairQueue[FairTask] = FairQueue()
        self.current: FairTask | None = None
        self.picked_at_ns = 0  # the current task's CPU time when its slice began
        self._here = -1 if agent.cpu is None else agent.cpu
        self._neighbours = () if agent.cpu is None else agent.topology.neighbours(agent.cpu)

    def enqueue(self, task: Any) -> None:
        self.queue.charge(task, task.runtime_ns)
        if not task.may_run_on(self._here) and self._hand_on(task):
            return
        task.queued_ns = task.since_ns
        if self.queue or self.current is not None:
            self._advance_clock()
        cgroup, weight = self.agent.cgroup(task)
        if cgroup or task.cgroup:
            self._join(task, cgroup, weight)
        self.queue.add(task)

    def dequeue(self, task: Any) -> None:
        """The cgroup of ``task`` is charged now: the task may not come back."""
        self.queue.discard(task)
        is_current = task is self.current
        if task.cgroup:
            self.queue.charge(task, task.runtime_ns)
            if is_current:
                self.queue.advance(task)
        if is_current:
            self.current = None

    def on_task_new(self, task: Any) -> None:
        """CPU time on other CPUs does not count here."""
        task.charged_ns = None
        self.enqueue(task)

    def on_task_wakeup(self, task: Task) -> None:
        """A task that wakes runs at once if a CPU is idle: its last CPU, else the nearest."""
        is_busy = self.queue or self.current not in (None, task)
        if is_busy and (cpus := self._idle_cpus(task)):
            near = (cpu for ring in self._neighbours for cpu in ring if cpu in cpus)
            self.agent.associate(task, task.cpu if task.cpu in cpus else next(near, min(cpus)))
        else:
            self.enqueue(task)

    def on_task_yield(self, task: Any) -> None:
        """The first waiting task runs next, even if it has had more CPU time than ``task``."""
        self.queue.charge(task, task.runtime_ns)
        self.queue.yield_to_first(task)
        self.enqueue(task)

    def on_priority_changed(self, task: Any) -> None:
        """CPU time up to now counts at the old weight."""
        self.queue.charge(task, task.runtime_ns)

    def on_affinity_changed(self, task: Task) -> None:
        """A task that may not run here any more goes to another CPU's agent."""
        if task.state == WAITING:
            self.dequeue(task)
            self.enqueue(task)

    def place(self, task: Task, cpus: tuple[int, ...]) -> int:
        """The CPU with the fewest tasks; among equals, the task's last CPU."""
        loads = self.agent.loads()
        return min(cpus, key=lambda cpu: (not self.agent.may_run(task, cpu), loads.get(cpu, 0), cpu != task.cpu))

    def schedule(self) -> list[Transaction]:
        idle = self.agent.idle_cpus()
        if not idle and not self.agent.is_online(self._here):
            # No message tells that this CPU went offline.
            for waiting in self.queue:
                self._hand_on(waiting)
        decided = []
        for cpu in idle:
            if (task := self._next()) is not None:
                decided.append(Transaction(task, cpu, self._left_ns(task) if self.queue else 0))
            elif self.balances and self.agent.highest_load() > 1:
                self._pull()
        return decided

    def _next(self) -> FairTask | None:
        """The current task if it was interrupted in its slice, else the first of the queue."""
        if (task := self.current) is not None and task.boosted and self._is_interrupted(task):
            self.queue.discard(task)
            return task
        while self.queue:
            task = (self._pop_overdue() if len(self.queue) > 1 else None) or self.queue.pop_least()
            # As _waits_here(), without its call.
            if task is not None and (self.agent.waits(task) if self.agent.decides_for(task) else self._lose(task)):
                self.current, self.picked_at_ns = task, task.runtime_ns
                return task
        self.current = None
        return None

    def _left_ns(self, task: FairTask) -> int:
        """What is left of the slice of ``task``, which runs next while others wait."""
        return self._slice_ns(1 + len(self.queue)) - (task.runtime_ns - self.picked_at_ns)

    def _pop_overdue(self) -> FairTask | None:
        """Remove and return the task that has waited longest, if that is too long."""
        task = self.queue.oldest()
        if task is None or time.monotonic_ns() - task.queued_ns < _WAIT_TIMEOUT_NS:
            return None
        self.queue.discard(task)
        return task

    def _pull(self) -> None:
        """Take half of the tasks that wait for the CPU with the most tasks; each arrives as a new task."""
        loads = self.agent.loads()
        loads.pop(self._here, None)
        busiest = max(loads, key=loads.__getitem__, default=None)
        if busiest is not None and loads[busiest] > 1:
            self.agent.take(min(loads[busiest] // 2, _PULL_LIMIT), busiest)

    def _join(self, task: FairTask, cgroup: int, weight: int) -> None:
        """Weigh cgroups from the first one with a weight of its own on: a queue without them costs less."""
        if not isinstance(self.queue, GroupedFairQueue):
            self.queue = GroupedFairQueue(self.queue)
        self.queue.join(task, cgroup, weight)

    def _advance_clock(self) -> None:
        """Charge the current task first: no message may have told yet how long it has run."""
        if (task := self.current) is not None and task not in self.queue:
            self.queue.charge(task, self.agent.status_words.counted_ns(task))
        self.queue.advance(task)

    def _slice_ns(self, tasks: int) -> int:
        return slice_ns(tasks, self.latency_ns, self.min_granularity_ns)

    def _is_interrupted(self, task: FairTask) -> bool:
        """Whether ``task``, which is boosted, was interrupted in its slice, and waits here for the rest of it."""
        if task not in self.queue or not self._waits_here(task):
            return False
        return task.runtime_ns - self.picked_at_ns < self._slice_ns(len(self.queue))

    def _waits_here(self, task: Task) -> bool:
        """Whether ``task`` still waits for this CPU."""
        return self.agent.waits(task) if self.agent.decides_for(task) else self._lose(task)

    def _lose(self, task: Task) -> bool:
        """Another agent took ``task``: forget it, since it may come back as new. False: it does not wait here."""
        self.agent.tasks.pop(task.gtid, None)
        self.dequeue(task)
        return False

    def _hand_on(self, task: FairTask) -> bool:
        """Give a task that cannot run here now to another agent; False if it may run here, and nowhere else now."""
        cpus = self._other_cpus(task)
        if not cpus and task.may_run_on(self._here):
            return False
        self.dequeue(task)
        self.agent.associate(task, self.place(task, cpus) if cpus else _ASSIGNER)
        return True

    def _idle_cpus(self, task: Task) -> tuple[int, ...]:
        """The other CPUs that ``task`` may run on, and where no task runs or waits."""
        loads = self.agent.loads()
        if all(loads.values()):
            return ()
        idle = self.agent.idle_enclave_cpus()
        return tuple(cpu for cpu in self._other_cpus(task) if loads.get(cpu) == 0 and cpu in idle)

    def _other_cpus(self, task: Task) -> tuple[int, ...]:
        """The other CPUs that have an agent and that ``task`` may run on."""
        return tuple(cpu for cpu in self.agent.agent_cpus() if cpu != self._here and self.agent.may_run(task, cpu))
