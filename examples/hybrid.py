# SPDX-License-Identifier: Apache-2.0
"""BPF runs tasks on idle CPUs, an agent schedules the others and tunes BPF: ghostbpf run examples/hybrid.py -- CMD

The fast path is in BPF: a task that wakes while a CPU is idle runs there, without the agent. The agent gets messages of
the other tasks only, and selects the next task of each CPU.

    BPF's counters ──> tasks placed by BPF ──┐
                                             ├──> the slice ──> BPF's parameters, which it reads at each placement
    messages ────────> tasks that waited ────┘             └──> the agent's transactions

While no task waits, preemption has no use, and slices are endless. The larger the part of tasks that wait, the less
often a CPU becomes free by itself, and the shorter the slices. The agent adjusts them after two of the longest slices.

Good for machines with changing load. Not good if a few tasks must never wait under full load.
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
    """BPF for idle CPUs, a FIFO in Python for waiting tasks, and slices by the number of waiting tasks."""

    name = "hybrid"
    options = (
        Option("shortest", "shortest_ns", duration_ns, "3ms", "the slice if all tasks wait"),
        Option("longest", "longest_ns", duration_ns, "50ms", "the slice if few tasks wait"),
        flag("verbose", "verbose", "yes: report each change on stderr"),
    )
    shortest_ns: int
    longest_ns: int
    verbose: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        self.waited = 0
        self.idle_before = agent.counters().idle
        self.tune_at = 0

    def enqueue(self, task: Task) -> None:
        self.waited += 1
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def schedule(self) -> Iterator[Transaction]:
        if time.monotonic_ns() >= self.tune_at:
            yield from self.tune()
        for cpu in self.agent.open_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu, self.agent.params.slice_ns or self.longest_ns)

    def tune(self) -> Iterator[Transaction]:
        """Set BPF's slice by the placements and waits since the last call."""
        self.tune_at = time.monotonic_ns() + 2 * self.longest_ns
        idle = self.agent.counters().idle
        placed, waited = idle - self.idle_before, self.waited
        self.idle_before, self.waited = idle, 0
        before, slice_ns = self.agent.params.slice_ns, 0
        if waited or self.queue:
            slice_ns = max(self.shortest_ns, self.longest_ns * placed // (placed + waited + 1))
        if slice_ns == before:
            return
        self.agent.params.slice_ns = slice_ns
        if self.verbose:
            slice = f"{slice_ns / 1e6:.1f} ms" if slice_ns else "endless"
            print(f"hybrid: {placed} placed by BPF, {waited} waited: slice {slice}", file=sys.stderr, flush=True)
        if not before:  # running tasks still have endless slices: preempt them once
            yield from (Transaction(None, cpu, flags=PREEMPT) for cpu in self.agent.cpus)
