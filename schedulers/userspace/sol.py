# SPDX-License-Identifier: Apache-2.0
"""ghOSt's SOL, the speed of light: the highest rate at which one agent can decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..agents.task import LATCHED, Task, Transaction, TxnState
from ..policy import Option
from .agent import Agent
from .options import slice_ns
from .policy import AgentPolicy
from .run_queue import RunQueue


class Sol(AgentPolicy):
    """One FIFO queue, decided as fast as it goes: in batches, and ahead of time.

    The first waiting task gets the CPU that it last ran on, else a sibling of that CPU, else any. When no CPU is idle,
    each busy CPU gets the next task in the queue ahead of time: it runs that task next without asking the agent. If
    another CPU idles before that, the task moves there. With --slice, a task that has used up its slice goes to the
    tail.

    Good for measuring agents, and for work of many short, equal pieces: ``ghostbpf enclave show`` shows the rate, the
    capacity and the cost of a decision. Not good where some tasks are more urgent than others, or where some never
    block and no --slice is given. It is fastest with --spin yes.
    """

    name = "sol"
    options = (Option("slice", "slice_ns", slice_ns, "inf", "how long a task may keep a CPU; inf: until it blocks"),)
    fastpath = False
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.siblings = {cpu.id: tuple(cpu.siblings) for cpu in agent.topology.cpus}
        self.queue = StickyQueue(self.siblings)
        self.enqueue, self.dequeue = self.queue.add, self.queue.discard  # type: ignore[method-assign]
        self.ahead: dict[int, Task] = {}  # committed to a busy CPU, the oldest first

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """The task keeps its turn."""
        if transaction.task is not None:
            self.queue.add_first(transaction.task)

    def schedule(self) -> Iterator[Transaction]:
        idle = self.agent.idle_cpus()
        if idle and self.ahead:
            yield from self._move_to_idle(idle)
        if self.queue:
            for task, cpu in self.queue.match(idle):
                yield Transaction(task, cpu, self.slice_ns)
        if self.queue:
            for task, cpu in self.queue.match(self.agent.busy_cpus()):
                self.ahead.pop(cpu, None)
                self.ahead[cpu] = task
                yield Transaction(task, cpu, self.slice_ns)
        self.looks_again = bool(self.queue or self.ahead)

    def _move_to_idle(self, idle: list[int]) -> Iterator[Transaction]:
        """Move tasks that wait for a busy CPU to idle ones; they arrived before every task in the queue."""
        for busy, task in list(self.ahead.items()):
            if task.state != LATCHED or not self.agent.waits(task):
                del self.ahead[busy]
            elif (cpu := nearest(task, idle, self.siblings)) is not None:
                del self.ahead[busy]
                idle.remove(cpu)
                yield Transaction(task, cpu, self.slice_ns)


class StickyQueue(RunQueue):
    """A FIFO whose tasks stay where they last ran; ``siblings`` lists the CPUs that share a core with each CPU."""

    def __init__(self, siblings: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self._siblings = siblings

    def match(self, cpus: list[int]) -> list[tuple[Task, int]]:
        """Pair tasks, from the head on, with ``cpus``, until either runs out; removes both."""
        matched = []
        for task in self:
            if not cpus:
                break
            if (cpu := nearest(task, cpus, self._siblings)) is not None:
                cpus.remove(cpu)
                matched.append((task, cpu))
        for task, _ in matched:
            self.discard(task)
        return matched


def nearest(task: Task, cpus: Sequence[int], siblings: Mapping[int, Sequence[int]]) -> int | None:
    """The one of ``cpus`` where ``task`` last ran, else a sibling of it, else the first that ``task`` may run on."""
    last = task.cpu
    if last in cpus and task.may_run_on(last):
        return last
    for cpu in siblings.get(last, ()):
        if cpu in cpus and task.may_run_on(cpu):
            return cpu
    return next((cpu for cpu in cpus if task.may_run_on(cpu)), None)
