# SPDX-License-Identifier: Apache-2.0
"""ghOSt's Shinjuku: requests take turns, each of some microseconds while another waits."""

from __future__ import annotations

import itertools
import time
from typing import Any

from ..agents.task import Transaction, TxnState
from ..policy import Option
from .agent import Agent
from .central import Central, HintedTask, Running
from .options import slice_ns
from .priority_queue import PriorityQueue

#: A task that has waited for longer is the next of its QoS.
WAIT_TIMEOUT_NS = 1_000_000_000
_BEFORE_ALL = -(1 << 62)


class ShinjukuTask(HintedTask):
    """A task with its position among the tasks of its QoS, the least first."""

    position = 0
    queued_ns = 0  # when it got that position; CLOCK_MONOTONIC


class Shinjuku(Central[ShinjukuTask]):
    """A FIFO queue per QoS, the highest first, and slices of microseconds while another waits.

    A task that has run for a slice leaves its CPU to a waiting task of the same QoS; a waiting task of a higher QoS
    preempts it at once. A task that wakes goes to the head of its queue, so that short requests need not wait for long
    ones. A task that is new, or has used up its slice, goes to the tail; after it has waited for 1 s, it is the next of
    its QoS. Tasks of a repeating class keep their CPU as long as they have work. The agent itself ends slices, so they
    can be shorter than a tick.

    With two QoS classes this is Shinjuku and Shenango: batch jobs of the lower class use the CPUs that requests leave.
    Good for requests whose lengths differ much, and where the longest latency counts. Not good for throughput, since
    each slice costs a decision and two switches. For slices of microseconds, use --spin yes.

    Unlike in ghOSt's Shinjuku, tasks at the tail run however many tasks wake all the time.
    """

    name = "shinjuku"
    options = (Option("slice", "slice_ns", slice_ns, "50us", "how long a task keeps a CPU that another waits for"),)
    task_type = ShinjukuTask
    slice_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        self.queue: QosQueue
        super().__init__(agent, QosQueue(), **options)
        self.renewed: set[ShinjukuTask] = set()  # running tasks that got another request since the last turn
        self._positions = itertools.count(1)

    def enqueue(self, task: Any, first: bool = False) -> None:
        position = next(self._positions)
        task.position, task.queued_ns = -position if first or task.boosted else position, time.monotonic_ns()
        super().enqueue(task)

    def on_task_wakeup(self, task: Any) -> None:
        self.enqueue(task, first=True)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.enqueue(transaction.task, first=True)

    def change_work(self, task: ShinjukuTask) -> None:
        """End the slice of a running task: its hint may be for another request, and others wait already."""
        if task in self.committed:
            self.renewed.add(task)

    def next_work_ns(self, task: ShinjukuTask) -> int:
        return task.since_ns + task.work_class.period_ns

    def schedule(self) -> list[Transaction]:
        if self.queue:
            self.queue.promote(time.monotonic_ns())
        decided = super().schedule()
        self.renewed.clear()
        return decided

    def should_preempt(self, running: Running[ShinjukuTask], first: ShinjukuTask) -> bool:
        end_ns = slice_end_ns(running, first, self.slice_ns, running.task in self.renewed)
        if end_ns is None or end_ns <= time.monotonic_ns():
            return end_ns is not None
        self.schedule_at(end_ns)
        return False


class QosQueue(PriorityQueue[ShinjukuTask]):
    """Tasks by QoS, the highest first, and those of one QoS by position."""

    def rank(self, task: ShinjukuTask) -> tuple[int, int]:
        return -task.work_class.qos, task.position

    def promote(self, now_ns: int) -> None:
        """Move tasks that have waited longer than WAIT_TIMEOUT_NS to the head of their QoS, in the order of arrival."""
        while (task := self.oldest()) is not None and now_ns - task.queued_ns > WAIT_TIMEOUT_NS:
            task.position, task.queued_ns = _BEFORE_ALL, now_ns
            self.add(task)


def slice_end_ns(
    running: Running[ShinjukuTask], first: ShinjukuTask, slice_ns: int, is_renewed: bool = False
) -> int | None:
    """When a running task must leave its CPU to the first waiting task: 0 for at once, None for never."""
    if first.qos != running.task.qos:
        return 0 if first.qos > running.task.qos else None
    if is_renewed:
        return 0
    return None if running.task.work_class.repeating or not slice_ns else running.since_ns + slice_ns
