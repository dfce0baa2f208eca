# SPDX-License-Identifier: Apache-2.0
"""ghOSt's per-CPU FIFO: an agent and a queue for each CPU."""

from __future__ import annotations

from functools import partial

from ..agents.task import WAITING, Task, Transaction, TxnState
from .agent import Agent
from .options import flag
from .policy import AgentPolicy
from .run_queue import RunQueue


class FifoPerCpu(AgentPolicy):
    """A FIFO queue and an agent for each CPU.

    New tasks are assigned to the CPUs in turn, and stay there. A task runs until it blocks or yields; then the head of
    its CPU's queue is next. A task that another class interrupted goes to the head. With --steal yes, a CPU with
    an empty queue takes the task that has waited longest for another CPU.

    Good for tasks that profit from a warm cache, on many CPUs: agents share nothing. Not good where tasks differ much
    in how long they run: without --steal yes, a CPU may idle while tasks wait for another.
    """

    name = "fifo_per_cpu"
    options = (flag("steal", "steal", "yes: a CPU with nothing to do takes a task that waits for another"),)
    per_cpu = True
    fastpath = False
    steal: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        self._fill_idle = agent.first_in_first_out(self.queue, otherwise=self._leave_offline_cpu)
        self.stand_in(FifoPerCpu, dequeue=self.queue.discard)
        if agent.cpu is not None:
            self.stand_in(FifoPerCpu, enqueue=partial(self.queue.add_if_allowed, agent.cpu, self.enqueue))
        if not self.steal:
            self.stand_in(FifoPerCpu, schedule=self._fill_idle)

    def enqueue(self, task: Task) -> None:
        """A task that may not run here goes to another CPU's agent."""
        if not self._hand_on(task):
            self.queue.add(task)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """The task keeps its turn."""
        task = transaction.task
        if task is not None and not self._hand_on(task):
            self.queue.add_first(task)

    def on_affinity_changed(self, task: Task) -> None:
        """A task that may not run here any more goes to another CPU's agent."""
        if task.state == WAITING:
            self.queue.discard(task)
            self.enqueue(task)

    def schedule(self) -> list[Transaction]:
        """With --steal yes, a CPU for which nothing waits takes the task that has waited longest for another."""
        decided = self._fill_idle()
        if self.steal and not decided and not self.queue and self.agent.idle_cpus():
            self.agent.take(1)
        return decided

    def _leave_offline_cpu(self) -> None:
        here = self.agent.cpu
        if here is not None and not self.agent.is_online(here):
            self.queue.discard_if(self._hand_on)

    def _hand_on(self, task: Task) -> bool:
        """Give a task that cannot run here now to the agent of another CPU; False if it can, or no other may run it."""
        here = self.agent.cpu
        if here is None or self.agent.may_run(task, here):
            return False
        cpus = tuple(cpu for cpu in self.agent.agent_cpus() if cpu != here and task.may_run_on(cpu))
        return bool(cpus) and self.agent.associate(task, self.place(task, cpus))
