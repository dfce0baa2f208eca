# SPDX-License-Identifier: Apache-2.0
"""ghOSt's SOL, the speed of light: the highest rate at which one agent can decide."""

from __future__ import annotations

from collections.abc import Iterator

from ..agents.task import LATCHED, Task, Transaction, TxnState
from ..policy import Option
from .agent import Agent
from .options import slice_ns
from .policy import AgentPolicy
from .run_queue import RunQueue, nearest


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
        self.queue = RunQueue()
        self._assign_idle, self._assign_busy = (
            agent.match(self.queue, self.slice_ns, self.siblings, busy=busy) for busy in (False, True)
        )
        self.stand_in(Sol, enqueue=self.queue.add, dequeue=self.queue.discard)
        self.ahead: dict[int, Task] = {}  # committed to a busy CPU, the oldest first

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """The task keeps its turn."""
        if transaction.task is not None:
            self.queue.add_first(transaction.task)

    def schedule(self) -> list[Transaction]:
        if self.ahead:
            idle = self.agent.idle_cpus()
            decided = [*self._move_to_idle(idle), *self._assign(idle)] if idle else []
        else:
            decided = self._assign_idle()
        if self.queue:
            decided += self._assign_ahead()
        self.looks_again = bool(self.queue or self.ahead)
        return decided

    def _assign(self, cpus: list[int]) -> list[Transaction]:
        """Give each of ``cpus`` the next task in the queue that should run there."""
        return [Transaction(task, cpu, self.slice_ns) for task, cpu in self.queue.match(cpus, self.siblings)]

    def _assign_ahead(self) -> list[Transaction]:
        """Give each busy CPU the task that it runs next."""
        decided = self._assign_busy()
        for task, cpu, *_ in decided:
            assert task is not None
            self.ahead.pop(cpu, None)
            self.ahead[cpu] = task
        return decided

    def _move_to_idle(self, idle: list[int]) -> Iterator[Transaction]:
        """Move tasks that wait for a busy CPU to idle ones; they arrived before every task in the queue."""
        for busy, task in list(self.ahead.items()):
            if task.state != LATCHED or not self.agent.waits(task):
                del self.ahead[busy]
            elif (cpu := nearest(task, idle, self.siblings)) is not None:
                del self.ahead[busy]
                idle.remove(cpu)
                yield Transaction(task, cpu, self.slice_ns)
