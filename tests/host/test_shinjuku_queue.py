# SPDX-License-Identifier: Apache-2.0
"""Shinjuku's queue and slices: a FIFO per QoS, and which task preempts which."""

from __future__ import annotations

from collections import deque

from ghostbpf.hints import ClassFlags, WorkClass
from ghostbpf.schedulers.userspace.central import Running
from ghostbpf.schedulers.userspace.shinjuku import WAIT_TIMEOUT_NS, QosQueue, ShinjukuTask, slice_end_ns
from hypothesis import given
from hypothesis import strategies as st

SLICE = 50_000


def request(gtid: int, qos: int = 0, *, repeating: bool = False) -> ShinjukuTask:
    task = ShinjukuTask(gtid)
    task.allowed = 0b1111
    task.work_class = WorkClass(0, ClassFlags.REPEATING if repeating else ClassFlags.ONE_SHOT, qos, 0, 0)
    return task


requests = st.builds(request, st.integers(1, 1000), st.integers(0, 2), repeating=st.booleans())
steps = st.lists(st.tuples(st.sampled_from(["tail", "head", "leave", "run"]), st.integers(0, 9)), max_size=60)


@given(st.lists(st.integers(0, 2), min_size=10, max_size=10), steps)
def test_queue_is_a_deque_for_each_qos(classes: list[int], steps: list[tuple[str, int]]) -> None:
    tasks = [request(gtid, qos) for gtid, qos in enumerate(classes, 1)]
    queue, model = QosQueue(), {qos: deque[ShinjukuTask]() for qos in (2, 1, 0)}
    for turn, (what, number) in enumerate(steps, 1):
        task = tasks[number]
        own = model[task.qos]
        if what == "run":
            expected = next((fifo.popleft() for fifo in model.values() if fifo), None)
            assert queue.pop(0) is expected
            continue
        if task in own:
            own.remove(task)
        if what == "leave":
            queue.discard(task)
            continue
        task.position = -turn if what == "head" else turn
        queue.add(task)
        (own.appendleft if what == "head" else own.append)(task)
        assert queue.first(0) is next(fifo[0] for fifo in model.values() if fifo)
    assert len(queue) == sum(map(len, model.values()))


@given(requests, requests, st.booleans())
def test_lower_qos_never_preempts_and_higher_always_does(
    runs: ShinjukuTask, first: ShinjukuTask, renewed: bool
) -> None:
    end = slice_end_ns(Running(runs, 0, 1_000_000), first, SLICE, renewed)
    if first.qos < runs.qos:
        assert end is None
    if first.qos > runs.qos:
        assert end == 0


@given(requests, requests, st.booleans(), st.sampled_from([0, SLICE]), st.integers(1, 10**12))
def test_equals_take_turns_by_the_slice(
    runs: ShinjukuTask, first: ShinjukuTask, renewed: bool, slice_ns: int, since_ns: int
) -> None:
    first.work_class = first.work_class._replace(qos=runs.qos)
    end = slice_end_ns(Running(runs, 0, since_ns), first, slice_ns, renewed)
    if renewed:
        assert end == 0, "another request"
    elif runs.work_class.repeating or not slice_ns:
        assert end is None
    else:
        assert end == since_ns + slice_ns


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 30))
def test_short_request_waits_for_no_more_than_the_slice_that_runs(long: list[int], comes_at: int) -> None:
    """One CPU, in units of slices: long requests, and one of a single slice that wakes in between."""
    queue, left = QosQueue(), {request(gtid): work for gtid, work in enumerate(long, 1)}
    short = request(1000)
    for task in left:
        task.position = task.gtid
        queue.add(task)
    ran: list[ShinjukuTask] = []
    for turn in range(100, 100 + sum(long) + comes_at + 1):
        if turn == 100 + comes_at:
            short.position, left[short] = -turn, 1
            queue.add(short)
        if (task := queue.pop(0)) is None:
            continue
        ran.append(task)
        left[task] -= 1
        if left[task]:
            task.position = turn
            queue.add(task)
    assert not any(left.values())
    assert ran.index(short) == min(comes_at, sum(long))
    for task, work in zip(list(left), long, strict=False):
        assert ran.count(task) == work


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2 * WAIT_TIMEOUT_NS), st.booleans()), max_size=12))
def test_tasks_that_waited_for_too_long_are_first_of_their_qos_in_the_order_of_arrival(
    arrivals: list[tuple[int, int, bool]],
) -> None:
    queue, tasks, now_ns = QosQueue(), list[ShinjukuTask](), 2 * WAIT_TIMEOUT_NS
    for turn, (qos, came_ns, woke) in enumerate(sorted(arrivals, key=lambda arrival: arrival[1]), 1):
        task = request(turn, qos)
        task.position, task.queued_ns = -turn if woke else turn, came_ns
        queue.add(task)
        tasks.append(task)
    late = [task for task in tasks if now_ns - task.queued_ns > WAIT_TIMEOUT_NS]
    expected = sorted(tasks, key=lambda task: (-task.qos, task not in late, 0 if task in late else task.position))
    queue.promote(now_ns)
    queue.promote(now_ns)
    assert [queue.pop(0) for _ in tasks] == expected
