# SPDX-License-Identifier: Apache-2.0
"""BPF runs tasks where a CPU is idle, an agent schedules the rest and tunes BPF: ghostbpf run examples/hybrid.py -- CMD

The fast path is in BPF: a task that wakes and finds an idle CPU runs there, and the agent gets no message. The agent
gets messages only of tasks that must wait, and decides which of them runs next on which CPU.

    BPF's counters ──> wakeups that found a CPU ──┐
                                                  ├──> the slice ──> BPF's parameters, read at each fast-path placement
    messages ────────> tasks that had to wait ────┘             └──> the agent's own transactions

While no task waits, slices are endless: preemption would help no task. The larger the share of tasks that must wait,
the less often a CPU becomes free by itself, and the shorter the slices. The policy adapts them every two longest
slices.

Good for machines that are sometimes idle and sometimes full. Not good where a few tasks must never wait, however full
the machine is.
"""

import sys
import time
from collections.abc import Iterator

from ghostbpf.schedulers.userspace import (
    PREEMPT,
    Agent,
    AgentPolicy,
    Option,
    RunQueue,
    Task,
    Transaction,
    duration_ns,
    flag,
)


class Hybrid(AgentPolicy):
    """BPF takes the idle CPUs, a FIFO in Python the rest; slices by how many have to wait."""

    name = "hybrid"
    options = (
        Option("shortest", "shortest_ns", duration_ns, "3ms", "the slice when all tasks have to wait"),
        Option("longest", "longest_ns", duration_ns, "50ms", "the slice when hardly any task has to wait"),
        flag("verbose", "verbose", "yes: print each change of the slice, and why, to stderr"),
    )
    shortest_ns: int
    longest_ns: int
    verbose: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        self.waited = 0  # tasks that had to wait since the last tune()
        self.placed_before = agent.counters().idle
        self.tune_at_ns = 0

    def enqueue(self, task: Task) -> None:
        self.waited += 1
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def schedule(self) -> Iterator[Transaction]:
        if time.monotonic_ns() >= self.tune_at_ns:
            yield from self.tune()
        for cpu in self.agent.open_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu, self.agent.params.slice_ns or self.longest_ns)

    def tune(self) -> Iterator[Transaction]:
        """Write the slice that fits the tasks since the last call into BPF's parameters."""
        self.tune_at_ns = time.monotonic_ns() + 2 * self.longest_ns
        placed_now = self.agent.counters().idle
        placed, waited = placed_now - self.placed_before, self.waited
        self.placed_before, self.waited = placed_now, 0
        old_slice, new_slice = self.agent.params.slice_ns, 0
        if waited or self.queue:
            new_slice = max(self.shortest_ns, self.longest_ns * placed // (placed + waited + 1))
        if new_slice == old_slice:
            return
        self.agent.params.slice_ns = new_slice
        if self.verbose:
            slice = f"{new_slice / 1e6:.1f} ms" if new_slice else "endless"
            print(f"hybrid: {placed} placed by BPF, {waited} had to wait: slice {slice}", file=sys.stderr, flush=True)
        if not old_slice:  # the running tasks still have endless slices: preempt each of them once
            yield from (Transaction(None, cpu, flags=PREEMPT) for cpu in self.agent.cpus)
