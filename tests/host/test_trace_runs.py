# SPDX-License-Identifier: Apache-2.0
"""Time on and off a CPU: cpudist and schedrun beside the kernel's own count of it."""

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
        found = periodic.figures() - before
    assert found.ran == pytest.approx(PERIODS * RUN, rel=0.2)
    # A run that follows a hidden switch is counted with what is hidden.
    assert traced.seconds() == pytest.approx(found.ran, rel=0.05, abs=found.slack)
    assert traced.count() + traced.missed == found.blocked + found.preempted == found.runs


def test_undisturbed_runs_are_as_long_as_the_periods(periodic: Task) -> None:
    with tracing("cpudist", "-m", "-t", periodic.pid) as traced:
        before = periodic.figures()
        periodic.run()
        found = periodic.figures() - before
    histogram = traced.histogram()
    assert histogram["unit"] == "msecs"
    assert counted(histogram) + traced.missed == histogram["count"] + traced.missed == found.runs
    long_ones = sum(bucket["count"] for bucket in histogram["buckets"] if bucket["from"] >= 4)
    # Each preemption makes two runs of one.
    assert PERIODS - found.preempted - traced.missed <= long_ones <= PERIODS + found.preempted + found.hidden
    assert histogram["max"] >= RUN * 1e3 or found.preempted >= PERIODS


def test_time_off_the_cpu_is_at_least_what_the_task_slept(periodic: Task) -> None:
    with tracing("cpudist", "-O", "-t", periodic.pid) as traced:
        before = periodic.figures()
        started = time.monotonic()
        periodic.run()
        took = time.monotonic() - started
        found = periodic.figures() - before
    # It was asleep when the trace began: when it had left the CPU is not known.
    assert found.has(traced.count(), found.runs - 1)
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
        found = [one.figures() - then for one, then in zip(tasks, before, strict=True)]
    for one, figures in zip(tasks, found, strict=True):
        assert figures.blocked >= PERIODS
        assert figures.has(traced.count("blocked", tid=one.pid), figures.blocked)
        assert figures.has(traced.count("preempted", tid=one.pid), figures.preempted)
        assert figures.has(traced.count("all", tid=one.pid))
        ran = traced.seconds("preempted", tid=one.pid) + traced.seconds("blocked", tid=one.pid)
        assert ran == pytest.approx(figures.ran, rel=0.05, abs=figures.slack)
        assert traced.seconds("all", tid=one.pid) == pytest.approx(ran, rel=1e-3)


def test_runs_of_no_sched_ext_task_are_left_out_on_request(periodic: Task) -> None:
    with tracing("schedrun", "--ext", "-t", periodic.pid) as traced:
        periodic.run()
    assert list(traced) == []
    assert traced.end["events"] == 0
