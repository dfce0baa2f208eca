# SPDX-License-Identifier: Apache-2.0
"""The FIFO of the centralized and the per-CPU policies: a list that holds each task at most once."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.agents.extension import in_python
from ghostbpf.schedulers.userspace import RunQueue, Task
from hypothesis import given
from hypothesis import strategies as st

#: The classes of both halves of the runtime: a queue for each class of tasks.
QUEUES = {in_python(Task): in_python(RunQueue), Task: RunQueue}
CPUS = range(4)
NAMES = ("add", "add_first", "add_if_allowed", "discard", "pop", "discard_if", "leave_queues")

steps = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 7), st.sampled_from(CPUS), st.booleans()))
masks = st.lists(st.integers(0, 15), min_size=8, max_size=8)


@st.composite
def waiting(draw: st.DrawFn) -> list[Task]:
    kind = draw(st.sampled_from(list(QUEUES)))
    tasks = [kind(gtid) for gtid in range(1, 1 + draw(st.integers(0, 12)))]
    for task in tasks:
        task.cpu, task.allowed, task.boosted = draw(st.sampled_from(CPUS)), draw(st.integers(0, 15)), False
    return tasks


def queue_of(tasks: list[Task]) -> RunQueue:
    queue = QUEUES[type(tasks[0])]() if tasks else RunQueue()
    for task in tasks:
        queue.add(task)
    return queue


@pytest.mark.parametrize("kind", QUEUES)
@given(masks, steps)
def test_queue_is_a_list_with_each_task_once(
    kind: type[Task], allowed: list[int], steps: list[tuple[str, int, int, bool]]
) -> None:
    tasks = [kind(gtid) for gtid in range(8)]
    for task, mask in zip(tasks, allowed, strict=True):
        task.allowed = mask
    queue, model = QUEUES[kind](), list[Task]()
    for what, number, cpu, boosted in steps:
        task = tasks[number]
        if what == "pop":
            first = next((task for task in model if task.may_run_on(cpu)), None)
            assert queue.pop(cpu) is first
            if first is not None:
                model.remove(first)
            continue
        if what == "discard_if":
            queue.discard_if(lambda task, cpu=cpu: task.may_run_on(cpu))
            model = [task for task in model if not task.may_run_on(cpu)]
            continue
        if task in model:
            model.remove(task)
        if what in ("discard", "leave_queues"):
            queue.discard(task) if what == "discard" else task.leave_queues()
            continue
        task.boosted = boosted
        if what == "add_if_allowed":
            queue.add_if_allowed(cpu, queue.discard, task)
            if not task.may_run_on(cpu):
                continue
        else:
            (queue.add if what == "add" else queue.add_first)(task)
        model.insert(0 if boosted or what == "add_first" else len(model), task)
        assert (len(queue), bool(queue)) == (len(model), True)
        assert [task in queue for task in tasks] == [task in model for task in tasks]
    for task in tasks:
        task.allowed = 1
    assert [queue.pop(0) for _ in model] == model
    assert queue.pop(0) is None


@given(waiting(), st.sampled_from(CPUS), st.integers(0, 15))
def test_pop_near_takes_the_nearest_allowed_task_and_of_equals_the_first(
    tasks: list[Task], cpu: int, near: int
) -> None:
    allowed = [task for task in tasks if task.may_run_on(cpu)]
    same_cpu = [task for task in allowed if task.cpu == cpu]
    close = [task for task in allowed if near >> task.cpu & 1]
    expected = next(iter([*same_cpu, *close, *allowed]), None)
    queue = queue_of(tasks)
    assert queue.pop_near(cpu, near) is expected
    rest = [task for task in tasks if task is not expected]
    for task in rest:
        task.allowed = 1
    assert [queue.pop(0) for _ in rest] == rest


@given(waiting(), st.sampled_from(CPUS))
def test_pop_near_takes_an_interrupted_task_first(tasks: list[Task], cpu: int) -> None:
    queue = queue_of(tasks)
    interrupted = type(tasks[0])(100) if tasks else Task(100)
    interrupted.allowed, interrupted.boosted, interrupted.cpu = 15, True, 0
    queue.add(interrupted)
    assert queue.pop_near(cpu, 15) is interrupted


def test_pop_near_looks_at_the_first_tasks_only() -> None:
    tasks = [Task(gtid) for gtid in range(1, 101)]
    for task in tasks:
        task.allowed, task.cpu = 1, 1
    tasks[-1].cpu = 0
    assert queue_of(tasks).pop_near(0, 0) is tasks[0]
