# SPDX-License-Identifier: Apache-2.0
"""The queue in the order of ranks, in Python and in C: a sorted list that holds each task at most once."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from ghostbpf.schedulers.agents import extension
from ghostbpf.schedulers.agents.extension import in_python
from ghostbpf.schedulers.userspace import RunQueue, Task
from ghostbpf.schedulers.userspace.priority_queue import PriorityQueue
from hypothesis import given
from hypothesis import strategies as st

CPUS, TASKS = range(4), 8
NAMES = ("add", "put", "discard", "pop", "first", "append", "leave")

#: What happens, to which task, its rank, and on which CPU.
steps = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, TASKS - 1), st.integers(0, 3), st.sampled_from(CPUS)), max_size=80
)
masks = st.lists(st.integers(0, 15), min_size=TASKS, max_size=TASKS)


class Kinds:
    """The classes of one half: ``Queue`` is a priority queue by the tasks' CPU time."""

    def __init__(self, is_native: bool) -> None:
        self.Task, self.RunQueue, base = (
            kind if is_native else in_python(kind) for kind in (Task, RunQueue, PriorityQueue)
        )
        self.Base: Any = base
        self.Queue: Any = type("Queue", (base,), {"rank": lambda self, task: task.runtime_ns})

    def tasks(self, allowed: list[int]) -> list[Task]:
        tasks = [self.Task(gtid) for gtid in range(len(allowed))]
        for task, mask in zip(tasks, allowed, strict=True):
            task.allowed = mask
        return tasks


PYTHON, NATIVE = Kinds(False), Kinds(True)
needs_native_half = pytest.mark.skipif(
    extension.native is None, reason=f"the native half is not used: {extension.missing}"
)
HALVES = pytest.mark.parametrize(
    "kinds", [PYTHON, pytest.param(NATIVE, marks=needs_native_half)], ids=["python", "native"]
)


@HALVES
@given(masks, steps)
def test_queue_is_a_list_sorted_by_rank_and_arrival(
    kinds: Kinds, allowed: list[int], steps: list[tuple[str, int, int, int]]
) -> None:
    tasks = kinds.tasks(allowed)
    queue, model, ages = kinds.Queue(), list[tuple[int, int, Task]](), list[Task]()
    for turn, (what, number, rank, cpu) in enumerate(steps):
        task = tasks[number]
        if what in ("pop", "first"):
            expected = next((task for *_, task in model if task.may_run_on(cpu)), None)
            assert getattr(queue, what)(cpu) is expected
            if what == "first" or expected is None:
                continue
            task = expected
        elif what == "append":
            continue
        model = [entry for entry in model if entry[-1] is not task]
        ages = [other for other in ages if other is not task]
        if what in ("add", "put"):
            task.runtime_ns = rank
            _insert(queue, what, task, rank)
            model = sorted([*model, (rank, turn, task)], key=lambda entry: entry[:2])
            ages.append(task)
        elif what == "leave":
            task.leave_queues()
        elif what == "discard":
            queue.discard(task)
        assert (len(queue), bool(queue)) == (len(model), bool(model))
        assert list(queue) == [task for *_, task in model]
        assert queue.head() == (model[0][::2] if model else None)
        assert queue.oldest() is (ages[0] if ages else None)
        assert [task in queue for task in tasks] == [task in ages for task in tasks]


def _insert(queue: Any, what: str, task: Task, rank: Any) -> None:
    if what == "put":
        queue.put(task, rank)
    else:
        queue.add(task)


@needs_native_half
@given(masks, steps)
def test_both_halves_do_the_same_with_tasks_in_several_queues(
    allowed: list[int], steps: list[tuple[str, int, int, int]]
) -> None:
    seen = []
    for kinds in (PYTHON, NATIVE):
        tasks, results = kinds.tasks(allowed), list[Any]()
        by_time, by_pair, fifo = kinds.Queue(), kinds.Base(), kinds.RunQueue()
        for what, number, rank, cpu in steps:
            task = tasks[number]
            if what in ("add", "put"):
                task.runtime_ns = rank
                by_time.add(task)
                if what == "put":
                    by_pair.put(task, (bool(rank & 1), -number))
            elif what == "append":
                task.boosted = bool(rank & 1)
                fifo.add(task)
            elif what == "leave":
                task.leave_queues()
            else:
                for queue in (by_time, by_pair, fifo)[: 1 + rank]:
                    method = getattr(queue, "pop" if what == "first" else what)
                    got = method(task if what == "discard" else cpu)
                    results.append(got and got.gtid)
            results.append([[task.gtid for task in queue] for queue in (by_time, by_pair, fifo)])
            results.append([[task in queue for task in tasks] for queue in (by_time, by_pair, fifo)])
            results.append([queue.oldest() and queue.oldest().gtid for queue in (by_time, by_pair)])
        seen.append(results)
    assert seen[0] == seen[1]


@HALVES
def test_many_tasks_come_in_order(kinds: Kinds) -> None:
    tasks = kinds.tasks([1] * 5000)
    queue = kinds.Queue()
    for number, task in enumerate(tasks):
        task.runtime_ns = number * 7919 % 5003
        queue.add(task)
    for task in tasks[::3]:
        queue.discard(task)
    left = [task for number, task in enumerate(tasks) if number % 3]
    assert [queue.pop(0) for _ in left] == sorted(left, key=lambda task: task.runtime_ns)
    assert queue.pop(0) is None


@HALVES
def test_task_whose_rank_cannot_be_compared_is_in_no_queue(kinds: Kinds) -> None:
    first, second = kinds.tasks([1, 1])
    queue = kinds.Queue()
    for task in (first, second):
        queue.put(task, 1)
    with pytest.raises(TypeError):
        queue.put(second, "late")
    assert list(queue) == [first]
    second.leave_queues()
    assert queue.oldest() is queue.pop(0) is first


@HALVES
def test_without_a_rank_only_put_adds(kinds: Kinds) -> None:
    (task,) = kinds.tasks([1])
    queue = kinds.Base()
    with pytest.raises(NotImplementedError):
        queue.add(task)
    queue.put(task, 5)
    assert queue.head() == (5, task)


@needs_native_half
def test_comparison_that_changes_the_queue_is_an_error() -> None:
    first, second, third = NATIVE.tasks([1, 1, 1])
    queue = NATIVE.Queue()

    class Discards(int):
        def __lt__(self, other: int) -> bool:
            queue.discard(first)
            return super().__lt__(other)

    queue.put(first, 1)
    queue.put(second, 2)
    with pytest.raises(RuntimeError, match="changed while ranks were compared"):
        queue.put(third, Discards(3))
    assert list(queue) == [second]


class Rank:
    """A rank that can be referred to weakly, and refers to its queue."""

    queue: Any = None

    def __lt__(self, other: Rank) -> bool:
        return False


@HALVES
def test_queue_keeps_a_rank_for_as_long_as_its_task_is_in_it(kinds: Kinds) -> None:
    (task,) = kinds.tasks([1])
    rank, queue = Rank(), kinds.Queue()
    kept = weakref.ref(rank)
    queue.put(task, rank)
    del rank
    assert kept() is not None
    queue.discard(task)
    assert kept() is None


@HALVES
def test_queue_that_its_own_rank_refers_to_is_collected(kinds: Kinds) -> None:
    (task,) = kinds.tasks([1])
    rank, queue = Rank(), kinds.Queue()
    rank.queue, gone = queue, weakref.ref(rank)
    queue.put(task, rank)
    del rank, queue, task
    gc.collect()
    assert gone() is None
