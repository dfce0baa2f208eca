# SPDX-License-Identifier: Apache-2.0
"""ghOSt's Shinjuku: requests in turn, and none for longer than some microseconds while another waits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..policy import Option
from .central import Central, HintedTask, Running
from .policy import slice_ns
from .priority_queue import PriorityQueue
from .task import Transaction, TxnState

if TYPE_CHECKING:
    from .agent import Agent


PATIENCE_NS = 1_000_000_000
_BEFORE_ALL = -(1 << 62)


class ShinjukuTask(HintedTask):
    """A task with its place among those of its QoS."""

    place = 0
    placed_ns = 0  # when it got that; CLOCK_MONOTONIC


class Shinjuku(Central[ShinjukuTask]):
    """A FIFO queue per QoS, the highest first, and slices of microseconds while another waits.

    Whoever has run for a slice makes way for who waits, of the same QoS or a higher one. Those that wake go to the
    head, so that what is short need not wait for what is long; those that are new, or have used their slice up, to the
    tail, and who has waited for 1 s is next of its QoS. Tasks of a repeating class keep their CPU for as long as they
    have work. The agent itself ends slices, which so may be shorter than a tick.

    With two QoS classes it is Shinjuku and Shenango: those of the lower one, batch jobs, have what CPUs the requests
    leave. Good for requests whose lengths differ much, and where the longest latency counts. Not good for throughput,
    since each slice costs a decision and two switches. For slices of microseconds, --spin yes.

    Unlike in ghOSt's, those at the tail have their turn however many wake all the time.
    """

    name = "shinjuku"
    options = (Option("slice", "slice_ns", slice_ns, "50us", "how long a task keeps a CPU that another waits for"),)
    task_type = ShinjukuTask
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        self.queue: QosQueue
        super().__init__(agent, QosQueue(), **options)
        self.renewed: set[ShinjukuTask] = set()
        self._turns = itertools.count(1)

    def enqueue(self, task: Any, first: bool = False) -> None:
        turn = next(self._turns)
        task.place, task.placed_ns = -turn if first or task.boosted else turn, time.monotonic_ns()
        super().enqueue(task)

    def on_task_wakeup(self, task: Any) -> None:
        self.enqueue(task, first=True)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.enqueue(transaction.task, first=True)

    def renew(self, task: ShinjukuTask) -> None:
        """It may be another request: those that wait need not wait for a slice of it, too."""
        if task in self.out:
            self.renewed.add(task)

    def comes_again_ns(self, task: ShinjukuTask) -> int:
        return task.since_ns + task.work_class.period_ns

    def schedule(self) -> Iterator[Transaction]:
        self.queue.promote(time.monotonic_ns())
        yield from super().schedule()
        self.renewed.clear()

    def should_preempt(self, running: Running[ShinjukuTask], first: ShinjukuTask) -> bool:
        over_ns = slice_end_ns(running, first, self.slice_ns, running.task in self.renewed)
        if over_ns is None or over_ns <= time.monotonic_ns():
            return over_ns is not None
        self.call_at(over_ns)
        return False


class QosQueue(PriorityQueue[ShinjukuTask]):
    """A queue for each QoS, the highest first."""

    def rank(self, task: ShinjukuTask) -> tuple[int, int]:
        return -task.qos, task.place

    def promote(self, now_ns: int) -> None:
        """To the head of their QoS with those that have waited for too long, in the order they came."""
        while (task := self.oldest()) is not None and now_ns - task.placed_ns > PATIENCE_NS:
            task.place, task.placed_ns = _BEFORE_ALL, now_ns
            self.add(task)


def slice_end_ns(
    running: Running[ShinjukuTask], first: ShinjukuTask, slice_ns: int, is_renewed: bool = False
) -> int | None:
    """When a task is to make way for the first that waits; None for not at all."""
    if first.qos != running.task.qos:
        return 0 if first.qos > running.task.qos else None
    if is_renewed:
        return 0
    return None if running.task.work_class.repeating or not slice_ns else running.since_ns + slice_ns
