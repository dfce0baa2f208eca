# SPDX-License-Identifier: Apache-2.0
"""Queues of spinners on one CPU: the lengths that runqlen shows, and the tasks that runqslower blames for waits."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tracing import Task, Traced, only, run_together, run_trace, spin, spin_for, spin_until, tracing

SPINNERS = 3


@pytest.fixture
def crowd(task: Callable[..., Task], cpus: list[int]) -> list[Task]:
    """Tasks that spin on the last CPU, each for a tenth of a second of CPU time."""
    return [task(lambda: spin(0.1), cpu=cpus[-1], name=f"crowd{n}") for n in range(SPINNERS)]


def sampled_while_crowded(task: Callable[..., Task], cpu: int, *arguments: object) -> Traced:
    """The output of runqlen for a CPU on which SPINNERS tasks spin from before it starts until after it ends."""
    stop = mmap.mmap(-1, 1)
    spinners = [task(lambda: spin_until(lambda: stop[0]), cpu=cpu) for _ in range(SPINNERS)]
    for spinner in spinners:
        spinner.start()
    with tracing("runqlen", *arguments) as traced:
        time.sleep(0.5)
    stop[0] = 1
    for spinner in spinners:
        spinner.finish()
    return traced


def test_queue_is_as_long_as_spinners_wait(task: Callable[..., Task], cpus: list[int]) -> None:
    traced = sampled_while_crowded(task, cpus[-1], "--per-cpu")
    queue = traced.histogram("runqlen", cpu=cpus[-1])
    assert queue["count"] >= 10
    assert {bucket["from"] for bucket in queue["buckets"] if bucket["count"]} <= set(range(SPINNERS - 1, 128))
    assert all(bucket["from"] == bucket["to"] for bucket in queue["buckets"])


def test_crowded_cpu_is_occupied_all_the_time(task: Callable[..., Task], cpus: list[int]) -> None:
    traced = sampled_while_crowded(task, cpus[-1], "--per-cpu", "--runqocc")
    assert [row["percent"] for row in only(traced, cpu=cpus[-1])] == [100.0]


def test_samples_of_one_cpu_count_no_other_cpu(task: Callable[..., Task], cpus: list[int]) -> None:
    traced = sampled_while_crowded(task, cpus[-1], "-C", cpus[-1], "-F", 49)
    queue = traced.histogram()
    assert queue["by"] == {}
    assert all(bucket["count"] == 0 for bucket in queue["buckets"] if bucket["from"] < SPINNERS - 1)
    assert 5 <= queue["count"] <= 49 * traced.end["seconds"] + 2


def longest(histogram: Mapping[str, Any]) -> int:
    return max(bucket["from"] for bucket in histogram["buckets"] if bucket["count"])


def test_filtered_queue_counts_only_matching_tasks(task: Callable[..., Task], cpus: list[int]) -> None:
    crowd = [task(spin_for(0.5), cpu=cpus[-1], name=name) for name in ("watched", "watched", "other", "other")]
    with (
        tracing("runqlen", "-C", cpus[-1]) as all_tasks,
        tracing("runqlen", "-C", cpus[-1], "-c", "watched") as watched,
        tracing("runqlen", "-C", cpus[-1], "-t", crowd[0].pid) as single,
        tracing("runqlen", "-C", cpus[-1], "-c", "absent") as absent,
    ):
        run_together(crowd)
    histograms = [traced.histogram() for traced in (all_tasks, watched, single, absent)]
    assert longest(histograms[0]) >= 3
    assert [longest(histogram) for histogram in histograms[1:]] == [2, 1, 0]
    # While the two other tasks are on the CPU's queue, a watched task always waits, except at the start and the end.
    waited = sum(bucket["count"] for bucket in histograms[1]["buckets"][1:])
    assert waited >= 10


def test_tasks_that_move_from_cpu_to_cpu_leave_no_length_behind(task: Callable[..., Task], cpus: list[int]) -> None:
    crowd = [task(spin_for(0.5), cpu=cpus[0], name="mover") for _ in range(3)]
    with tracing("runqlen", "-c", "mover", 0.2) as traced:
        for one in crowd:
            one.start()
        for number in range(200):
            os.sched_setaffinity(crowd[number % 3].pid, {cpus[number // 3 % 2]})
            time.sleep(0.001)
        for mover in crowd:
            mover.finish()
        time.sleep(1)
    *before, last = map(longest, traced.named("runqlen"))
    assert max(before) >= 1
    assert last == 0


def test_waits_match_the_kernels_figures_and_blame_the_other_tasks(crowd: list[Task]) -> None:
    victim = crowd[0]
    with tracing("runqslower", "--min", 1000, "-n", 16, "-t", victim.pid) as traced:
        before = victim.figures()
        run_together(crowd)
        figures = victim.figures() - before
    assert traced.lines[:-1], "with three tasks on a CPU, some wait is longer than 1 ms"
    for wait in traced:
        assert (wait["tid"], wait["pid"], wait["comm"]) == (victim.pid, victim.pid, "crowd0")
        assert wait["usecs"] >= 1000
        blamed = [culprit["usecs"] for culprit in wait["culprits"]]
        assert blamed == sorted(blamed, reverse=True)
        # No task ran on that CPU for longer than the wait took.
        assert sum(blamed) <= wait["usecs"] + 1
    # The task itself is blamed only where the tracer missed that it ran.
    assert sum(bool(only(wait["culprits"], tid=victim.pid)) for wait in traced) <= figures.hidden
    waited = sum(wait["usecs"] for wait in traced) / 1e6
    assert waited <= figures.waited * 1.05 + figures.slack
    blamed_for = {
        culprit["comm"]: sum(c["usecs"] for wait in traced for c in wait["culprits"] if c["comm"] == culprit["comm"])
        for wait in traced
        for culprit in wait["culprits"]
    }
    assert all(blamed_for.get(name, 0) > 0 for name in ("crowd1", "crowd2"))


def test_shorter_waits_are_not_shown(crowd: list[Task]) -> None:
    with tracing("runqslower", "--min", 30_000_000, "-p", crowd[0].pid) as traced:
        run_together(crowd)
    assert list(traced) == []
    assert "nothing matched" in traced.stderr


def test_option_n_limits_the_blamed_tasks(crowd: list[Task]) -> None:
    with tracing("runqslower", "--min", 1000, "-n", 0, "-t", crowd[0].pid) as traced:
        run_together(crowd)
    assert list(traced)
    assert all(wait["culprits"] == [] for wait in traced)


def test_slow_waits_are_printed_as_they_end_under_one_heading(cpus: list[int]) -> None:
    loop = "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done"
    done = run_trace(
        "runqslower", "--min", 500, "--", "taskset", "-c", cpus[-1], "sh", "-c", f"({loop}) & " * 4 + "wait"
    )
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["TIME", "COMM", "TID", "CPU", "LAT(us)", "RAN", "INSTEAD", "(us)"]
    waits = [row.split() for row in rows if not row.startswith(" ")]
    assert "sh" in {wait[1] for wait in waits}
    assert all(int(wait[4]) >= 500 for wait in waits)
    assert len(waits) < len(rows), "tasks that do not fit on one line are on the next"
    assert all(len(row) < 80 for row in rows)
