# SPDX-License-Identifier: Apache-2.0
"""ghOSt's centralized FIFO: one global agent, one queue, any CPU."""

from __future__ import annotations

from ...loaders.maps import possible_cpus
from ..agents.task import Transaction, TxnState
from ..policy import Option
from .agent import Agent
from .options import slice_ns
from .policy import AgentPolicy
from .run_queue import RunQueue


class FifoCentralized(AgentPolicy):
    """One FIFO queue, decided by one agent for all CPUs.

    A task that waits goes to the tail of the queue, or to its head if another class interrupted its slice. A CPU gets
    the first task that may run on it; among the first few, a task that last ran there, or nearby, goes first. With
    --slice, a task that has used up its slice goes to the tail. Without, a task runs until it blocks or yields.

    Good for tasks that run briefly and are equally urgent. Not good for nice values, which it ignores, nor for many
    CPUs: one agent decides for all of them.
    """

    name = "fifo_centralized"
    options = (Option("slice", "slice_ns", slice_ns, "inf", "how long a task may keep a CPU; inf: until it blocks"),)
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        near = {cpu: 1 << cpu for cpu in range(possible_cpus())}  # also of CPUs that are offline now
        near |= {cpu.id: (cpu.l3_siblings or cpu.siblings).bits for cpu in agent.topology.cpus}
        schedule = agent.first_in_first_out(self.queue, self.slice_ns, near)
        self.stand_in(FifoCentralized, enqueue=self.queue.add, dequeue=self.queue.discard, schedule=schedule)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """The task keeps its turn."""
        if transaction.task is not None:
            self.queue.add_first(transaction.task)
