# SPDX-License-Identifier: Apache-2.0
"""BPF places whom it can at once, an agent the rest, and tunes BPF meanwhile: ghostbpf run examples/hybrid.py -- CMD

The fast path, in BPF: a task that wakes and finds an idle CPU runs there, and the agent is not even asked. It is told
only of those that have to wait, and decides which of them is next on which CPU.

    BPF's counters ──> how many were placed unasked ──┐
                                                      ├──> the slice ──> BPF's parameters, read at its next placement
    messages ────────> how many had to wait ──────────┘             └──> the agent's own transactions

While nobody waits there is no use in taking a CPU from anybody: slices are endless. The more of all tasks have to wait,
the less often a CPU becomes free by itself, and the shorter the slices. It looks again after two of the longest.

Good for machines that are now idle, now full. Not good where a few tasks must never wait, however full it is.
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
        Option("shortest", "shortest_ns", duration_ns, "3ms", "the slice when everybody has to wait"),
        Option("longest", "longest_ns", duration_ns, "50ms", "the slice when hardly anybody has to"),
        flag("verbose", "verbose", "yes: tell on stderr what is tuned, and why"),
    )
    shortest_ns: int
    longest_ns: int
    verbose: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()
        self.asked = 0
        self.idle_before = agent.counters().idle
        self.look_at = 0

    def enqueue(self, task: Task) -> None:
        self.asked += 1
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def schedule(self) -> Iterator[Transaction]:
        if time.monotonic_ns() >= self.look_at:
            yield from self.tune()
        for cpu in self.agent.open_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu, self.agent.params.slice_ns or self.longest_ns)

    def tune(self) -> Iterator[Transaction]:
        """Write the slice that suits what has happened since the last look into BPF's parameters."""
        self.look_at = time.monotonic_ns() + 2 * self.longest_ns
        idle = self.agent.counters().idle
        unasked, asked = idle - self.idle_before, self.asked
        self.idle_before, self.asked = idle, 0
        before, wanted = self.agent.params.slice_ns, 0
        if asked or self.queue:
            wanted = max(self.shortest_ns, self.longest_ns * unasked // (unasked + asked + 1))
        if wanted == before:
            return
        self.agent.params.slice_ns = wanted
        if self.verbose:
            slice = f"{wanted / 1e6:.1f} ms" if wanted else "endless"
            print(f"hybrid: {unasked} placed by BPF, {asked} had to wait: slice {slice}", file=sys.stderr, flush=True)
        if not before:  # those that run have endless slices still: they make way once
            yield from (Transaction(None, cpu, flags=PREEMPT) for cpu in self.agent.cpus)
