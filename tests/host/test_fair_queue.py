# SPDX-License-Identifier: Apache-2.0
"""The queue of cfs, and its accounts, without a kernel: order and shares for any sequence of tasks."""

from __future__ import annotations

from ghostbpf.schedulers.userspace.fair import FairQueue, FairTask, slice_ns
from hypothesis import given
from hypothesis import strategies as st

MS = 10**6
LATENCY, GRANULARITY = 10 * MS, MS

vruntimes = st.integers(0, 100 * MS)
weights = st.sampled_from([1, 9, 33, 100, 305, 1024, 8668])


class Model(FairTask):
    """A task of some vruntime and weight."""

    def __init__(self, vruntime: int = 0, weight: int = 100) -> None:
        super().__init__(1)
        self.vruntime, self.weight = vruntime, weight


@given(st.lists(vruntimes))
def test_least_vruntime_goes_first_and_equals_in_the_order_of_arrival(given: list[int]) -> None:
    queue: FairQueue[Model] = FairQueue()
    tasks = [Model(vruntime) for vruntime in given]
    for task in tasks:
        queue.add(task)
    assert [queue.pop_least() for _ in tasks] == sorted(tasks, key=lambda task: task.vruntime)
    assert queue.pop_least() is None


operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "discard"]), st.integers(0, 5), vruntimes),
        st.tuples(st.sampled_from(["pop", "advance"]), st.just(0), vruntimes),
    )
)


@given(operations)
def test_after_any_operations_the_least_and_the_oldest_are_known(done: list[tuple[str, int, int]]) -> None:
    """Against a plain list; a task may be added with another vruntime while it is in the queue."""
    queue: FairQueue[Model] = FairQueue()
    pool = [Model() for _ in range(6)]
    model: list[Model] = []  # in the order of arrival
    for what, index, vruntime in done:
        task, clock = pool[index], queue.clock
        if what == "add":
            task.vruntime = vruntime
            queue.add(task)
            model = [other for other in model if other is not task] + [task]
            assert task.vruntime == max(vruntime, clock)
        elif what == "discard":
            queue.discard(task)
            model = [other for other in model if other is not task]
        elif what == "pop" and (first := queue.pop_least()) is not None:
            model.remove(first)
            assert all(first.vruntime <= other.vruntime for other in model)
        elif what == "advance":
            queue.advance(Model(vruntime))
        assert queue.clock >= clock
        assert len(queue) == len(model)
        assert all((other in queue) == (other in model) for other in pool)
        assert queue.oldest() is (model[0] if model else None)
        least = queue.head()
        assert (least is None) == (not model)
        assert least is None or least[0] == least[1].vruntime == min(other.vruntime for other in model)


@given(st.lists(weights, min_size=2, max_size=6), st.lists(st.integers(1, 20 * MS), min_size=50, max_size=200))
def test_hogs_share_by_weight_within_one_turn_each(given: list[int], turns: list[int]) -> None:
    """Turns may be of any length, as on a machine with late ticks: after a longer turn, a task waits longer."""
    queue: FairQueue[Model] = FairQueue()
    tasks = [Model(weight=weight) for weight in given]
    ran = dict.fromkeys(tasks, 0)
    for task in tasks:
        queue.charge(task, 0)
        queue.add(task)
    for turn in turns:
        task = queue.pop_least()
        assert task is not None
        ran[task] += turn
        queue.charge(task, ran[task])
        queue.advance(task)
        queue.add(task)
    for task in tasks:
        for other in tasks:
            share, other_share = (100 * ran[each] / each.weight for each in (task, other))
            assert share - other_share <= 100 * max(turns) / task.weight + 2 * len(turns)


@given(st.lists(st.tuples(st.integers(0, 50 * MS), weights), min_size=1, max_size=50))
def test_each_piece_of_run_time_counts_once_and_by_the_weight_of_its_time(pieces: list[tuple[int, int]]) -> None:
    queue: FairQueue[Model] = FairQueue()
    task, runtime, expected = Model(), 0, 0
    queue.charge(task, runtime)
    for ran, new_weight in pieces:
        runtime += ran
        expected += ran * 100 // task.weight
        task.weight = new_weight
        queue.charge(task, runtime)
        queue.charge(task, runtime)
    assert task.vruntime == expected


@given(st.integers(1, 10 * MS))
def test_cpu_time_before_the_first_charge_does_not_count(before: int) -> None:
    queue: FairQueue[Model] = FairQueue()
    task = Model()
    queue.charge(task, before)
    assert task.vruntime == 0
    queue.charge(task, before + MS)
    assert task.vruntime == MS


@given(vruntimes, vruntimes)
def test_task_that_slept_starts_at_the_clock(slept: int, running: int) -> None:
    queue: FairQueue[Model] = FairQueue()
    queue.advance(Model(running))
    sleeper = Model(slept)
    queue.add(sleeper)
    assert sleeper.vruntime == max(slept, running)


@given(st.integers(1, 10_000))
def test_turns_fill_the_latency_or_are_the_granularity(tasks: int) -> None:
    turn = slice_ns(tasks, LATENCY, GRANULARITY)
    assert turn >= GRANULARITY
    if tasks * GRANULARITY <= LATENCY:
        assert LATENCY <= tasks * turn < LATENCY + tasks
    else:
        assert turn == GRANULARITY
