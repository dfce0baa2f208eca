# SPDX-License-Identifier: Apache-2.0
"""EDF's queue and estimates: the order of deadlines and QoS for any sequence of tasks."""

from __future__ import annotations

from itertools import pairwise

from ghostbpf.hints import ClassFlags, WorkClass
from ghostbpf.schedulers.userspace.edf import DeadlineQueue, EdfTask, Estimate
from hypothesis import given
from hypothesis import strategies as st

MS = 10**6


def job(gtid: int, due_ns: int, *, qos: int = 0, takes_ns: int = MS, boosted: bool = False) -> EdfTask:
    task = EdfTask(gtid)
    task.due_ns, task.boosted, task.allowed = due_ns, boosted, 0b1111
    task.work_class = WorkClass(0, ClassFlags.ONE_SHOT, qos, takes_ns, 0)
    task.estimate = Estimate(takes_ns)
    return task


@st.composite
def jobs(draw: st.DrawFn, equal: bool = False) -> list[EdfTask]:
    takes = st.just(5 * MS) if equal else st.integers(1, 50 * MS)
    return [
        job(
            gtid,
            draw(st.integers(1, 500 * MS)),
            qos=draw(st.integers(0, 2)),
            takes_ns=draw(takes),
            boosted=draw(st.booleans()),
        )
        for gtid in range(1, 1 + draw(st.integers(0, 12)))
    ]


def drained(queue: DeadlineQueue, cpu: int = 0) -> list[EdfTask]:
    tasks = []
    while (task := queue.pop(cpu)) is not None:
        tasks.append(task)
    return tasks


def queue_of(waiting: list[EdfTask]) -> DeadlineQueue:
    queue = DeadlineQueue()
    for task in waiting:
        queue.add(task)
    return queue


@given(jobs())
def test_order_is_boost_then_qos_then_latest_start(waiting: list[EdfTask]) -> None:
    order = drained(queue_of(waiting))
    assert sorted(order, key=waiting.index) == waiting
    for task, after in pairwise(order):
        if task.boosted != after.boosted:
            assert task.boosted
        elif task.qos != after.qos:
            assert task.qos > after.qos
        else:
            assert task.start_by_ns() <= after.start_by_ns()


@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=12))
def test_equal_pieces_meet_all_deadlines_if_any_order_does(sets: list[tuple[int, bool]]) -> None:
    """All wait from the start, for one CPU: if any order meets all deadlines, then this order does."""
    waiting = [job(gtid, due * MS, takes_ns=5 * MS) for gtid, (due, _) in enumerate(sets, 1)]
    feasible = all(5 * (done + 1) <= due for done, due in enumerate(sorted(due for due, _ in sets)))
    ends = {task: 5 * MS * (done + 1) for done, task in enumerate(drained(queue_of(waiting)))}
    assert all(ends[task] <= task.due_ns for task in waiting) == feasible


@given(jobs(), st.data())
def test_after_any_adds_and_discards_each_task_is_queued_once(waiting: list[EdfTask], data: st.DataObject) -> None:
    queue, expected = queue_of(waiting), set(waiting)
    for task in data.draw(st.lists(st.sampled_from(waiting), max_size=20)) if waiting else ():
        if data.draw(st.booleans()):
            queue.discard(task)
            expected.discard(task)
        else:
            task.due_ns = data.draw(st.integers(1, 500 * MS))
            queue.add(task)
            expected.add(task)
        assert len(queue) == len(expected)
        assert all(task in queue for task in expected)
    order = drained(queue)
    assert set(order) == expected
    assert [(not t.boosted, -t.qos, t.start_by_ns()) for t in order] == sorted(
        (not t.boosted, -t.qos, t.start_by_ns()) for t in expected
    )


@given(jobs(), st.integers(0, 3), st.data())
def test_affinity_is_respected_and_changes_no_order(waiting: list[EdfTask], cpu: int, data: st.DataObject) -> None:
    for task in waiting:
        task.allowed = data.draw(st.integers(0, 15))
    whole = drained(queue_of([job_like(task) for task in waiting]))
    queue = queue_of(waiting)
    able = drained(queue, cpu)
    assert [task.gtid for task in able] == [task.gtid for task in whole if task.tid in _tids(waiting, cpu)]
    assert len(queue) == len(waiting) - len(able)


def job_like(task: EdfTask) -> EdfTask:
    return job(task.gtid, task.due_ns, qos=task.qos, takes_ns=task.work_class.exectime_ns, boosted=task.boosted)


def _tids(waiting: list[EdfTask], cpu: int) -> set[int]:
    return {task.tid for task in waiting if task.may_run_on(cpu)}


@given(st.lists(st.integers(0, 10**10)), st.integers(0, 10**10), st.integers(0, 10**10))
def test_estimate_is_a_mean_and_always_leaves_work_to_do(pieces: list[int], guess: int, elapsed: int) -> None:
    estimate = Estimate(guess)
    for ns in pieces:
        estimate.learn(ns)
    known = [guess or MS, *pieces]
    assert abs(estimate.mean_ns - sum(known) / len(known)) <= 1e-6 * max(known)
    remaining = estimate.remaining_ns(elapsed)
    assert remaining > 0
    assert remaining <= max(elapsed, estimate.mean_ns)


@given(jobs(), st.integers(0, 10**9))
def test_task_that_has_done_more_of_equal_work_starts_later(waiting: list[EdfTask], done: int) -> None:
    for task in waiting:
        fresh = task.start_by_ns()
        task.runtime_ns = done % task.work_class.exectime_ns
        assert task.start_by_ns() == fresh + task.runtime_ns
