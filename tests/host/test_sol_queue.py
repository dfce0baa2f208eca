# SPDX-License-Identifier: Apache-2.0
"""SOL's queue: first come, first served, and each task on the CPU that it last ran on, if possible."""

from __future__ import annotations

from ghostbpf.schedulers.agents.extension import in_python
from ghostbpf.schedulers.userspace import RunQueue, Task
from ghostbpf.schedulers.userspace.run_queue import nearest
from hypothesis import given
from hypothesis import strategies as st

#: The classes of both halves of the runtime: a queue for each class of tasks.
QUEUES = {in_python(Task): in_python(RunQueue), Task: RunQueue}
CPUS = range(8)
#: Two CPUs each share a core.
SIBLINGS = {cpu: (cpu & ~1, cpu | 1) for cpu in CPUS}

masks = st.integers(0, 255)
free_cpus = st.lists(st.sampled_from(CPUS), unique=True)


@st.composite
def tasks(draw: st.DrawFn, allowed: st.SearchStrategy[int] = masks) -> list[Task]:
    drawn, kind = [], draw(st.sampled_from(list(QUEUES)))
    for gtid in range(1, 1 + draw(st.integers(0, 20))):
        task = kind(gtid)
        task.cpu, task.allowed = draw(st.sampled_from((-1, *CPUS))), draw(allowed)
        drawn.append(task)
    return drawn


def queue_of(waiting: list[Task]) -> RunQueue:
    queue = QUEUES[type(waiting[0])]() if waiting else RunQueue()
    for task in waiting:
        queue.add(task)
    return queue


@given(tasks(), free_cpus)
def test_each_task_gets_a_cpu_of_its_own_that_it_may_run_on(waiting: list[Task], cpus: list[int]) -> None:
    matched = queue_of(waiting).match(list(cpus), SIBLINGS)
    assert all(task.may_run_on(cpu) and cpu in cpus for task, cpu in matched)
    assert len({task for task, _ in matched}) == len({cpu for _, cpu in matched}) == len(matched)


@given(tasks(), free_cpus)
def test_no_cpu_stays_free_for_which_a_task_waits(waiting: list[Task], cpus: list[int]) -> None:
    queue, free = queue_of(waiting), list(cpus)
    matched = queue.match(free, SIBLINGS)
    assert sorted([*free, *(cpu for _, cpu in matched)]) == sorted(cpus)
    left = [task for task in waiting if task not in dict(matched)]
    assert len(queue) == len(left)
    assert not any(task.may_run_on(cpu) for task in left for cpu in free)


@given(tasks(), free_cpus)
def test_no_task_gets_a_cpu_that_an_earlier_task_could_use(waiting: list[Task], cpus: list[int]) -> None:
    given_cpus = dict(queue_of(waiting).match(list(cpus), SIBLINGS))
    for place, task in enumerate(waiting):
        if task not in given_cpus:
            taken_by_later = {given_cpus[later] for later in waiting[place:] if later in given_cpus}
            assert not any(task.may_run_on(cpu) for cpu in taken_by_later)


@given(tasks(st.just(255)), free_cpus)
def test_without_affinities_it_is_a_fifo(waiting: list[Task], cpus: list[int]) -> None:
    matched = queue_of(waiting).match(list(cpus), SIBLINGS)
    assert [task for task, _ in matched] == waiting[: len(cpus)]


@given(tasks(), free_cpus)
def test_tasks_without_a_cpu_keep_their_order(waiting: list[Task], cpus: list[int]) -> None:
    queue = queue_of(waiting)
    taken = dict(queue.match(list(cpus), SIBLINGS))
    left = [task for task in waiting if task not in taken]
    for task in left:
        task.allowed = (1 << 20) - 1
    assert [task for task, _ in queue.match(list(range(len(left))), SIBLINGS)] == left


@given(tasks(), free_cpus)
def test_last_cpu_goes_before_its_sibling_and_that_before_any_other(waiting: list[Task], cpus: list[int]) -> None:
    for task in waiting:
        allowed = [cpu for cpu in cpus if task.may_run_on(cpu)]
        chosen = nearest(task, cpus, SIBLINGS)
        last, sibling = ([cpu for cpu in allowed if cpu == other] for other in (task.cpu, task.cpu ^ 1))
        assert [chosen] == (last or sibling or allowed[:1] or [None])


@given(tasks(), free_cpus)
def test_each_task_gets_the_nearest_cpu_that_is_left(waiting: list[Task], cpus: list[int]) -> None:
    free, expected = list(cpus), []
    for task in waiting:
        if (cpu := nearest(task, free, SIBLINGS)) is not None:
            free.remove(cpu)
            expected.append((task, cpu))
    assert queue_of(waiting).match(list(cpus), SIBLINGS) == expected
