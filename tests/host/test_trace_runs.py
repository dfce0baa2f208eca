# SPDX-License-Identifier: Apache-2.0
"""Time on and off a CPU: cpudist and schedrun compared with the kernel's own counts."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tracing import Task, Traced, run_together, spin, tracing

PERIODS, RUN, REST = 20, 0.005, 0.002


def work_periodically() -> None:
    for _ in range(PERIODS):
        spin(RUN)
        time.sleep(REST)


def counted(line: dict[str, int]) -> int:
    return sum(bucket["count"] for bucket in line["buckets"])  # type: ignore[attr-defined]


@pytest.fixture
def periodic(task: Callable[..., Task]) -> Task:
    return task(work_periodically)


def test_runs_of_a_periodic_task_add_up_to_the_cpu_time_it_used(periodic: Task) -> None:
    with tracing("cpudist", "-t", periodic.pid) as traced:
        before = periodic.figures()
        periodic.run()
        kernel = periodic.figures() - before
    assert kernel.ran == pytest.approx(PERIODS * RUN, rel=0.2)
    # A run after a hidden switch includes the hidden run.
    assert traced.seconds() == pytest.approx(kernel.ran, rel=0.05, abs=kernel.slack + traced.missed_seconds())
    assert traced.count() + traced.missed == kernel.blocked + kernel.preempted == kernel.runs


def test_undisturbed_runs_are_as_long_as_the_periods(periodic: Task) -> None:
    with tracing("cpudist", "-m", "-t", periodic.pid) as traced:
        before = periodic.figures()
        periodic.run()
        kernel = periodic.figures() - before
    histogram = traced.histogram()
    assert histogram["unit"] == "msecs"
    assert counted(histogram) + traced.missed == histogram["count"] + traced.missed == kernel.runs
    long_ones = sum(bucket["count"] for bucket in histogram["buckets"] if bucket["from"] >= 4)
    # Each preemption splits a run in two.
    assert PERIODS - kernel.preempted - traced.missed <= long_ones <= PERIODS + kernel.preempted + kernel.hidden
    assert histogram["max"] >= RUN * 1e3 or kernel.preempted >= PERIODS


def test_time_off_the_cpu_is_at_least_what_the_task_slept(periodic: Task) -> None:
    with tracing("cpudist", "-O", "-t", periodic.pid) as traced:
        before = periodic.figures()
        started = time.monotonic()
        periodic.run()
        took = time.monotonic() - started
        kernel = periodic.figures() - before
    # It slept when the trace began, so the start of that sleep is unknown.
    assert kernel.has(traced.count(), kernel.runs - 1)
    assert PERIODS * REST <= traced.seconds() <= took
    assert sum(bucket["count"] for bucket in traced.histogram()["buckets"] if bucket["from"] >= 2048) > 0


def test_idle_time_is_counted_only_on_request(cpus: list[int]) -> None:
    def trace(*arguments: str) -> Traced:
        with tracing("cpudist", "-L", *arguments) as traced:
            time.sleep(0.3)
        return traced

    assert trace().count(tid=0) == 0
    with_idle = trace("-I")
    assert with_idle.seconds(tid=0) <= len(cpus) * with_idle.end["seconds"]


@pytest.mark.parametrize("spinners", [1, 2])
def test_preempted_and_blocked_runs_are_as_many_as_the_kernel_counts(
    task: Callable[..., Task], cpus: list[int], spinners: int
) -> None:
    tasks = [task(work_periodically, cpu=cpus[0]) for _ in range(spinners)]
    with tracing("schedrun", "-L") as traced:
        before = [one.figures() for one in tasks]
        run_together(tasks)
        kernel = [one.figures() - then for one, then in zip(tasks, before, strict=True)]
    for one, figures in zip(tasks, kernel, strict=True):
        assert figures.blocked >= PERIODS
        assert figures.has(traced.count("blocked", tid=one.pid), figures.blocked)
        assert figures.has(traced.count("preempted", tid=one.pid), figures.preempted)
        assert figures.has(traced.count("all", tid=one.pid))
        ran = traced.seconds("preempted", tid=one.pid) + traced.seconds("blocked", tid=one.pid)
        slack = figures.slack + traced.missed_seconds("all", tid=one.pid)
        assert ran == pytest.approx(figures.ran, rel=0.05, abs=slack)
        assert traced.seconds("all", tid=one.pid) == pytest.approx(ran, rel=1e-3)


def test_runs_of_no_sched_ext_task_are_left_out_on_request(periodic: Task) -> None:
    with tracing("schedrun", "--ext", "-t", periodic.pid) as traced:
        periodic.run()
    assert list(traced) == []
    assert traced.end["events"] == 0
