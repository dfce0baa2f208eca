# SPDX-License-Identifier: Apache-2.0
"""ghOSt's centralized FIFO: one global agent, one queue, any CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..policy import Option
from .policy import AgentPolicy, RunQueue, slice_ns
from .task import Task, Transaction, TxnState

if TYPE_CHECKING:
    from .agent import Agent


class FifoCentralized(AgentPolicy):
    """One FIFO queue, decided by one agent for all CPUs.

    Whoever waits goes to the tail, and to the head if its turn was cut short by another class. A CPU gets the first
    task that may run on it; of the first few, one that ran there last, or near. With --slice, a task that has used its
    slice up goes to the tail; without, it runs until it blocks or yields.
    """

    name = "fifo_centralized"
    options = (Option("slice", "slice_ns", slice_ns, "inf", "how long a task may keep a CPU; inf: until it blocks"),)
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        self.near = {cpu.id: (cpu.l3_siblings or cpu.siblings).bits for cpu in agent.topology.cpus}

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """It is the first again."""
        if transaction.task is not None:
            self.queue.add_first(transaction.task)

    def schedule(self) -> Iterator[Transaction]:
        if not self.queue:
            return
        for cpu in self.agent.open_cpus() if self.agent.fastpath else self.agent.idle_cpus():
            if task := self._next(cpu):
                yield Transaction(task, cpu, self.slice_ns)

    def _next(self, cpu: int) -> Task | None:
        while task := self.queue.pop_near(cpu, self.near[cpu]):
            if self.agent.waits(task):
                return task
        return None
