# SPDX-License-Identifier: Apache-2.0
"""The base class of policies in Python: callbacks tell what happens to tasks, schedule() decides what runs next.

class Fifo(AgentPolicy):
    \"\"\"One queue, first come, first served.\"\"\"

    name = "fifo"

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def schedule(self) -> Iterator[Transaction]:
        for cpu in self.agent.idle_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from ..agents.task import Task, Transaction, TxnState
from ..cpuset import CpuSet
from ..policy import Option
from .agent import Agent

#: What the callbacks about tasks call unless the policy defines them.
_DEFAULTS = {
    "on_task_new": "enqueue",
    "on_task_wakeup": "enqueue",
    "on_task_preempt": "enqueue",
    "on_task_yield": "enqueue",
    "on_task_blocked": "dequeue",
    "on_task_dead": "dequeue",
    "on_task_departed": "dequeue",
}
#: What does nothing unless the policy defines it.
_NOTHING = (
    "on_affinity_changed",
    "on_priority_changed",
    "on_cpu_idle",
    "on_cpu_tick",
    "on_cpu_busy",
    "on_cpu_available",
)


class AgentPolicy:
    """Base of all policies in Python. One object decides for one enclave or, with ``per_cpu``, for one CPU.

    Each of the ``options`` is a keyword argument of the constructor, named by its ``field``. The option ``slice_ns`` is
    also the slice of tasks that BPF runs without asking the agent. ``fastpath`` is the default of --fastpath. With
    ``hinted``, ``agent.hints`` has what applications say of their tasks. With ``watches_cpus``, on_cpu_busy() and
    on_cpu_available() are called. With ``weighs_cgroups``, ``agent.cgroup()`` tells a task's cgroup and its weight.
    While ``looks_again`` is true, schedule() is called once more after each turn that read or committed something: a
    committed task may run by then, and no message tells that.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    per_cpu: ClassVar[bool] = False
    fastpath: ClassVar[bool] = True
    hinted: ClassVar[bool] = False
    watches_cpus: ClassVar[bool] = False
    weighs_cgroups: ClassVar[bool] = False
    task_type: ClassVar[type[Task]] = Task
    #: When schedule() must be called even if no message comes, in ns of CLOCK_MONOTONIC; 0: never.
    due_ns: int = 0
    looks_again: bool = False

    def __init__(self, agent: Agent, **options: int) -> None:
        self.agent = agent
        for field, value in options.items():
            setattr(self, field, value)

    def callback(self, name: str) -> Callable[[Any], object] | None:
        """What to call instead of method ``name``, a default of which only calls another or, None, does nothing."""
        own: Callable[[Any], object] = getattr(self, name)
        if getattr(own, "__func__", None) is not getattr(AgentPolicy, name) or name not in (*_DEFAULTS, *_NOTHING):
            return own
        return getattr(self, _DEFAULTS[name]) if name in _DEFAULTS else None

    def stand_in(self, cls: type[AgentPolicy], **functions: Callable[..., Any]) -> None:
        """Call ``functions`` in place of the methods of ``cls`` with these names, unless a subclass has its own."""
        for name, function in functions.items():
            if getattr(type(self), name) is getattr(cls, name):
                setattr(self, name, function)

    def enqueue(self, task: Task) -> None:
        """``task`` waits for a CPU: it is new, woke up, was preempted, yielded, or its transaction failed."""
        raise NotImplementedError

    def dequeue(self, task: Task) -> None:
        """``task`` must not be scheduled any more; it may or may not be enqueued."""
        raise NotImplementedError

    def schedule(self) -> Iterable[Transaction]:
        """Which tasks run next, and on which CPUs; called after each batch of messages. May be a generator."""
        raise NotImplementedError

    def on_task_new(self, task: Task) -> None:
        """``task`` is new to this agent, and waits."""
        self.enqueue(task)

    def on_task_wakeup(self, task: Task) -> None:
        """``task`` slept, and waits now."""
        self.enqueue(task)

    def on_task_preempt(self, task: Task) -> None:
        """``task`` ran, used up its slice or lost its CPU to another class (then it is ``boosted``), and waits now."""
        self.enqueue(task)

    def on_task_yield(self, task: Task) -> None:
        """``task`` called sched_yield(), and waits now."""
        self.enqueue(task)

    def on_task_blocked(self, task: Task) -> None:
        """``task`` sleeps."""
        self.dequeue(task)

    def on_task_dead(self, task: Task) -> None:
        """``task`` ended."""
        self.dequeue(task)

    def on_task_departed(self, task: Task) -> None:
        """``task`` left the enclave."""
        self.dequeue(task)

    def on_affinity_changed(self, task: Task) -> None:
        """``task.allowed`` changed."""

    def on_priority_changed(self, task: Task) -> None:
        """``task.weight`` changed."""

    def on_cpu_idle(self, cpu: int) -> None:
        """``cpu`` has nothing to run, and a task waits."""

    def on_cpu_tick(self, cpu: int) -> None:
        """A tick of ``cpu``, after ``agent.ticks(True)`` has asked for ticks."""

    def on_cpu_busy(self, cpu: int) -> None:
        """A higher class takes ``cpu`` for a task other than an agent; only if the policy ``watches_cpus``."""

    def on_cpu_available(self, cpu: int) -> None:
        """The higher class has left ``cpu``."""

    def on_cpus_changed(self, cpus: CpuSet) -> None:
        """``agent.cpus`` is ``cpus`` now, since the enclave was resized; without CPUs, the agent soon ends.

        Tasks that were committed to a CPU that the enclave has lost were refused before this call.
        """

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """``transaction`` failed, but its task still waits: enqueue it again."""
        if transaction.task is not None:
            self.enqueue(transaction.task)

    def place(self, task: Task, cpus: tuple[int, ...]) -> int:
        """With ``per_cpu``: choose one of ``cpus``, all of which ``task`` may run on; its agent gets the task.

        By default the CPUs take turns.
        """
        self._turn = getattr(self, "_turn", -1) + 1
        return cpus[self._turn % len(cpus)]
