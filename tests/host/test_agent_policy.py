# SPDX-License-Identifier: Apache-2.0
"""The base class of policies in Python."""

from __future__ import annotations

from typing import Any

from ghostbpf.schedulers.userspace import AgentPolicy, RunQueue, Task


class Queued(AgentPolicy):
    """Its callbacks are the queue's own methods."""

    name = "queued"

    def __init__(self, agent: Any = None) -> None:
        super().__init__(agent)
        self.queue = RunQueue()
        self.stand_in(Queued, enqueue=self.queue.add, dequeue=self.queue.discard)

    def dequeue(self, task: Task) -> None:
        raise AssertionError("the function stands in for this")


class Counted(Queued):
    """Has a method of its own."""

    name = "counted"
    count = 0

    def enqueue(self, task: Task) -> None:
        self.count += 1
        self.queue.add(task)


def test_function_stands_in_for_a_method_of_the_class() -> None:
    policy, task = Queued(), Task(1)
    wakeup, blocked = policy.callback("on_task_wakeup"), policy.callback("on_task_blocked")
    assert wakeup is not None
    assert blocked is not None
    wakeup(task)
    assert task in policy.queue
    blocked(task)
    assert task not in policy.queue


def test_method_of_a_subclass_is_called() -> None:
    policy, task = Counted(), Task(1)
    wakeup = policy.callback("on_task_wakeup")
    assert wakeup is not None
    wakeup(task)
    assert (policy.count, task in policy.queue) == (1, True)
