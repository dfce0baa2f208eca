# SPDX-License-Identifier: Apache-2.0
"""ghOSt's SOL, the speed of light: how fast can one agent decide at all?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..policy import Option
from .policy import AgentPolicy, RunQueue, slice_ns
from .task import LATCHED, Task, Transaction, TxnState

if TYPE_CHECKING:
    from .agent import Agent


class Sol(AgentPolicy):
    """One FIFO queue, decided as fast as it goes: in batches, and ahead of time.

    The first that waits gets the CPU it ran on last, or else that one's sibling, or else any. When none idles any more,
    the next in turn is committed to each busy CPU, which comes to it without a word from the agent; should another idle
    before that, it goes there. With --slice, a task that has used its slice up goes to the tail.

    Good for measuring agents, and for work of many short, equal pieces: ``ghostbpf enclave show`` tells the rate, the
    capacity and the cost of a decision. Not good where one task is more urgent than another, or where some never block
    and no --slice is given. It is fastest with --spin yes.
    """

    name = "sol"
    options = (Option("slice", "slice_ns", slice_ns, "inf", "how long a task may keep a CPU; inf: until it blocks"),)
    fastpath = False
    looks_again = True
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.siblings = {cpu.id: tuple(cpu.siblings) for cpu in agent.topology.cpus}
        self.queue = StickyQueue(self.siblings)
        self.ahead: dict[int, Task] = {}  # by CPU, the oldest first

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        """It is the first again."""
        if transaction.task is not None:
            self.queue.add_first(transaction.task)

    def schedule(self) -> Iterator[Transaction]:
        idle = self.agent.idle_cpus()
        if idle and self.ahead:
            yield from self._advance(idle)
        if not self.queue:
            return
        for task, cpu in self.queue.match(idle):
            yield Transaction(task, cpu, self.slice_ns)
        for task, cpu in self.queue.match(self.agent.busy_cpus()):
            self.ahead.pop(cpu, None)
            self.ahead[cpu] = task
            yield Transaction(task, cpu, self.slice_ns)

    def _advance(self, idle: list[int]) -> Iterator[Transaction]:
        """Those that still wait for a busy CPU need not, and were here before whoever is in the queue."""
        for behind, task in list(self.ahead.items()):
            if task.state != LATCHED or not self.agent.waits(task):
                del self.ahead[behind]
            elif (cpu := nearest(task, idle, self.siblings)) is not None:
                del self.ahead[behind]
                idle.remove(cpu)
                yield Transaction(task, cpu, self.slice_ns)


class StickyQueue(RunQueue):
    """A FIFO whose tasks stay where they ran; ``siblings`` are the CPUs that share a core, by CPU."""

    def __init__(self, siblings: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self._siblings = siblings

    def match(self, cpus: list[int]) -> list[tuple[Task, int]]:
        """Take tasks from the head on, and a CPU out of ``cpus`` for each, until there are no more of either."""
        matched = []
        for task in self._tasks:
            if not cpus:
                break
            if (cpu := nearest(task, cpus, self._siblings)) is not None:
                cpus.remove(cpu)
                matched.append((task, cpu))
        for task, _ in matched:
            del self._tasks[task]
        return matched


def nearest(task: Task, cpus: Sequence[int], siblings: Mapping[int, Sequence[int]]) -> int | None:
    """That of ``cpus`` where ``task`` ran last, or else a sibling of it, or else the first that it may run on."""
    last = task.cpu
    if last in cpus and task.may_run_on(last):
        return last
    for cpu in siblings.get(last, ()):
        if cpu in cpus and task.may_run_on(cpu):
            return cpu
    return next((cpu for cpu in cpus if task.may_run_on(cpu)), None)
