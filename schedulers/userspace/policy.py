# SPDX-License-Identifier: Apache-2.0
"""What a policy in Python is: a class that is told what happens to tasks, and says what runs next.

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

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from ..agents import AgentPolicySpec
from ..policy import Option, duration_ns
from .task import Task, Transaction, TxnState

if TYPE_CHECKING:
    from .agent import Agent

_SEARCH = 32


def _fastpath(text: str) -> int:
    if text not in ("idle", "off"):
        raise ValueError(f'"{text}": write idle or off')
    return int(text == "idle")


def _cpu(text: str) -> int:
    if text == "any":
        return -1
    if not text.isdecimal():
        raise ValueError(f'bad CPU "{text}": write a number, or any')
    return int(text)


def _flag(text: str) -> int:
    if text not in ("yes", "no"):
        raise ValueError(f'"{text}": write yes or no')
    return int(text == "yes")


def slice_ns(text: str) -> int:
    """Nanoseconds of a slice; 0 for "inf". Raises ValueError."""
    return 0 if text == "inf" else duration_ns(text)


def flag(name: str, field: str, help: str, default: str = "no") -> Option:
    """An option that is "yes" or "no"."""
    return Option(name, field, _flag, default, help)


class AgentPolicy:
    """Base of all policies in Python. One object decides for one enclave, or, where ``per_cpu``, for one CPU.

    ``options`` come in as keyword arguments named by their ``field``; one called ``slice_ns`` is also the slice of
    the tasks that the core places unasked. ``fastpath`` is the default of --fastpath. One that is ``hinted`` reads what
    applications say of their tasks, in ``agent.hints``. One that ``watches_cpus`` is told when higher classes take one.
    One that ``looks_again`` is asked once more after each turn, by when what it committed may run: no message tells.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    per_cpu: ClassVar[bool] = False
    fastpath: ClassVar[bool] = True
    hinted: ClassVar[bool] = False
    watches_cpus: ClassVar[bool] = False
    looks_again: ClassVar[bool] = False
    task_type: ClassVar[type[Task]] = Task
    #: When schedule() is to be called even if nothing happens, in ns of CLOCK_MONOTONIC; 0: there is no need.
    due_ns: int = 0

    def __init__(self, agent: Agent, **options: int) -> None:
        self.agent = agent
        for field, value in options.items():
            setattr(self, field, value)

    def enqueue(self, task: Task) -> None:
        """``task`` waits for a CPU from now on: it is new, woke up, was preempted, has yielded, or was refused."""
        raise NotImplementedError

    def dequeue(self, task: Task) -> None:
        """``task`` is not to be scheduled any more; it may have been enqueued, or not."""
        raise NotImplementedError

    def schedule(self) -> Iterable[Transaction]:
        """What is to run next, and where; called after each batch of messages. May be a generator."""
        raise NotImplementedError

    def on_task_new(self, task: Task) -> None:
        """The first that is heard of ``task``: it waits."""
        self.enqueue(task)

    def on_task_wakeup(self, task: Task) -> None:
        """It slept, and waits now."""
        self.enqueue(task)

    def on_task_preempt(self, task: Task) -> None:
        """It ran, used up its slice or had its CPU taken away (then it is ``boosted``), and waits now."""
        self.enqueue(task)

    def on_task_yield(self, task: Task) -> None:
        """It ran, gave up its CPU, and waits now."""
        self.enqueue(task)

    def on_task_blocked(self, task: Task) -> None:
        """It sleeps."""
        self.dequeue(task)

    def on_task_dead(self, task: Task) -> None:
        """It ended."""
        self.dequeue(task)

    def on_task_departed(self, task: Task) -> None:
        """It left the enclave."""
        self.dequeue(task)

    def on_affinity_changed(self, task: Task) -> None:
        """``task.allowed`` changed."""

    def on_priority_changed(self, task: Task) -> None:
        """``task.weight`` changed."""

    def on_cpu_idle(self, cpu: int) -> None:
        """``cpu`` has nothing to run, and a task waits."""

    def on_cpu_tick(self, cpu: int) -> None:
        """A tick of ``cpu``; only where ``agent.ticks(True)`` asked for them."""

    def on_cpu_busy(self, cpu: int) -> None:
        """A higher class takes ``cpu``, other than for an agent; only where the policy ``watches_cpus``."""

    def on_cpu_available(self, cpu: int) -> None:
        """``cpu`` is the enclave's again."""

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """A transaction failed, but its task waits, as far as is known: enqueue it again."""
        if transaction.task is not None:
            self.enqueue(transaction.task)

    def place(self, task: Task, cpus: tuple[int, ...]) -> int:
        """Where each CPU has an agent: the CPU (of ``cpus``, which are all allowed) whose agent gets ``task``.

        By default they take turns.
        """
        self._turn = getattr(self, "_turn", -1) + 1
        return cpus[self._turn % len(cpus)]


class RunQueue:
    """A FIFO of tasks, each in it once; adding, removing and taking the first are O(1)."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[Task, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def add(self, task: Task) -> None:
        """To the tail; to the head if it is boosted."""
        self._tasks[task] = None
        self._tasks.move_to_end(task, last=not task.boosted)

    def add_first(self, task: Task) -> None:
        """To the head."""
        self._tasks[task] = None
        self._tasks.move_to_end(task, last=False)

    def discard(self, task: Task) -> None:
        """Out of it, wherever it is."""
        self._tasks.pop(task, None)

    def discard_if(self, condition: Callable[[Task], bool]) -> None:
        """Out of it with those for which ``condition`` holds."""
        for task in [task for task in self._tasks if condition(task)]:
            self.discard(task)

    def pop(self, cpu: int) -> Task | None:
        """Take the first that may run on ``cpu``."""
        for task in self._tasks:
            if task.may_run_on(cpu):
                del self._tasks[task]
                return task
        return None

    def pop_near(self, cpu: int, near: int) -> Task | None:
        """Like pop(), but among the first few, one that ran last on ``cpu``, or on a CPU of the mask ``near``."""
        best: Task | None = None
        for count, task in enumerate(self._tasks):
            if not task.may_run_on(cpu):
                continue
            if task.boosted or task.cpu == cpu or count >= _SEARCH:
                best = best if count >= _SEARCH and best else task
                break
            if best is None or (not near >> best.cpu & 1 and near >> task.cpu & 1):
                best = task
        if best is not None:
            del self._tasks[best]
        return best


def spec_of(policy: type[AgentPolicy]) -> AgentPolicySpec:
    """``policy`` as the registry and the command know it, with the options that every agent has."""
    cpu_help = "the agent's CPU; when it spins there, that CPU runs no tasks"
    common: tuple[Option, ...] = (
        Option("fastpath", "fastpath", _fastpath, "idle" if policy.fastpath else "off", "idle: what needs no decision "
               "is done in BPF; off: the agent is asked everything"),
        Option("agent-timeout", "timeout_ns", duration_ns, "200ms", "after which a silent agent is not waited for"),
        Option("agent-cpu", "agent_cpu", _cpu, "any", cpu_help),
    )  # fmt: skip
    if not policy.per_cpu:
        common += (flag("spin", "spin", "yes: the agent never sleeps, and has a CPU for itself"),)
    summary = (policy.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return AgentPolicySpec(policy.name, summary, (*policy.options, *common), agent=policy)
