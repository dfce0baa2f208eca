# SPDX-License-Identifier: Apache-2.0
"""Stacks of tasks that are off the CPU, and the time of each."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tracing import Figures, Task, run_trace, tracing

NAPS, NAP = 5, 0.02


def nap() -> None:
    for _ in range(NAPS):
        time.sleep(NAP)


def under(stacks: Iterable[Mapping[str, Any]], function: str) -> tuple[int, float]:
    """The count and the seconds of the stacks in which a kernel function's name contains the text."""
    found = [s for s in stacks if any(function in frame for frame in s["frames"])]
    return sum(s["count"] for s in found), sum(s["usecs"] for s in found) / 1e6


def has(count: int, sleeps: int, found: Figures) -> bool:
    """Whether that many sleeps were counted; each preemption on the way to sleep adds one."""
    return max(sleeps - found.hidden, 0.8 * sleeps - 1) <= count <= sleeps + found.preempted


def test_sleep_is_found_under_nanosleep_for_as_long_as_it_took(task: Callable[..., Task]) -> None:
    sleeper = task(nap, name="napper")
    with tracing("offcputime", "-t", sleeper.pid) as traced:
        before, started = sleeper.figures(), time.monotonic()
        sleeper.run()
        took = time.monotonic() - started
        kernel = sleeper.figures() - before
    count, seconds = under(traced, "nanosleep")
    assert has(count, NAPS, kernel)
    assert min(count, NAPS) * NAP <= seconds <= took
    assert {(s["comm"], s["pid"]) for s in traced} == {("napper", sleeper.pid)}


def test_wait_for_a_pipe_is_found_under_its_read(task: Callable[..., Task]) -> None:
    inlet, outlet = os.pipe()
    reader = task(lambda: [os.read(inlet, 1) for _ in range(NAPS)])
    reader.start()
    reader.sleeps()
    with tracing("offcputime", "-t", reader.pid, "-m", int(NAP * 1e6)) as traced:
        before = reader.figures()
        for _ in range(NAPS):
            time.sleep(NAP)
            os.write(outlet, b"!")
            reader.sleeps()
        reader.finish()
        kernel = reader.figures() - before
    # The start of the first wait is unknown; the last is the wait for the next order.
    count, seconds = under(traced, "pipe_read")
    assert has(count, NAPS - 1, kernel)
    assert seconds >= count * NAP


def test_stacks_begin_with_the_scheduler_not_with_what_traces_it(task: Callable[..., Task]) -> None:
    sleeper = task(nap)
    with tracing("offcputime", "-t", sleeper.pid, "-K") as traced:
        sleeper.run()
    assert {s["frames"][0] for s in traced} == {"__schedule"}
    frames = {frame for s in traced for frame in s["frames"]}
    assert not [frame for frame in frames if re.match("bpf_|__bpf_|__traceiter_", frame)]


def test_kernel_or_user_frames_are_left_out_on_request(task: Callable[..., Task]) -> None:
    sleeper = task(nap)
    with (
        tracing("offcputime", "-t", sleeper.pid, "-U") as user,
        tracing("offcputime", "-t", sleeper.pid, "-K") as kernel,
        tracing("offcputime", "-t", sleeper.pid) as both,
    ):
        sleeper.run()

    in_user, in_kernel, in_both = ({frame for s in traced for frame in s["frames"]} for traced in (user, kernel, both))
    assert "__schedule" in in_kernel & in_both
    assert in_user
    assert not in_user & in_kernel
    assert in_both == in_user | in_kernel


def test_times_out_of_bounds_are_left_out(task: Callable[..., Task]) -> None:
    def sleep_short_and_long() -> None:
        time.sleep(0.01)
        time.sleep(0.5)

    sleeper = task(sleep_short_and_long)
    with (
        tracing("offcputime", "-t", sleeper.pid, "-m", 400_000) as long,
        tracing("offcputime", "-t", sleeper.pid, "-M", 400_000) as short,
    ):
        sleeper.run()
    assert under(long, "nanosleep")[1] >= 0.5
    assert all(s["usecs"] / s["count"] >= 400_000 for s in long)
    assert all(s["usecs"] / s["count"] <= 400_000 for s in short)


def test_only_the_selected_state_is_counted(task: Callable[..., Task]) -> None:
    sleeper = task(nap)
    with (
        tracing("offcputime", "-t", sleeper.pid, "--state", "interruptible") as light,
        tracing("offcputime", "-t", sleeper.pid, "--state", "uninterruptible") as deep,
    ):
        before = sleeper.figures()
        sleeper.run()
        kernel = sleeper.figures() - before
    assert has(under(light, "nanosleep")[0], NAPS, kernel)
    assert under(deep, "nanosleep")[0] == 0


def test_folded_stacks_are_lines_for_flame_graphs() -> None:
    done = run_trace("offcputime", "--folded", "--", "sleep", "0.05")
    lines = done.stdout.splitlines()[:-1]
    assert done.stdout.endswith("\n\n")
    for line in lines:
        assert re.fullmatch(r"\S+?(;[^;]+)+ \d+", line), line
        assert line.rpartition(" ")[0].split(";")[-1] == "__schedule"
    slept = [line for line in lines if "nanosleep" in line]
    assert len(slept) == 1
    names = slept[0].rpartition(" ")[0].split(";")
    assert names[0] == "sleep"
    # The outermost frame is first.
    assert names.index(next(n for n in names if "syscall" in n.lower())) < names.index("schedule")
    assert int(slept[0].rpartition(" ")[2]) >= 50_000


def test_stacks_as_text_end_with_the_task_and_its_time() -> None:
    done = run_trace("offcputime", "-K", "--", "sleep", "0.05")
    stacks = done.stdout.rstrip("\n").split("\n\n")
    slept = [stack.splitlines() for stack in stacks if "nanosleep" in stack]
    assert len(slept) == 1
    assert slept[0][0] == "    __schedule"
    assert re.fullmatch(r"    -  sleep \(\d+\)", slept[0][-2])
    assert int(slept[0][-1]) >= 50_000
    # The longest is printed last, next to the prompt.
    times = [int(stack.splitlines()[-1]) for stack in stacks]
    assert times == sorted(times)


def test_stacks_without_room_are_reported_as_missed() -> None:
    done = run_trace(
        "offcputime", "--stack-storage-size", 1, "--folded", "-K", "--", "sh", "-c", "sleep 0.01; sleep 0.01"
    )
    assert "[missed]" in done.stdout


def test_each_interval_has_its_own_times_and_counts(task: Callable[..., Task]) -> None:
    sleeper = task(nap)
    with tracing("offcputime", "-t", sleeper.pid, 0.05) as traced:
        before = sleeper.figures()
        for _ in range(4):
            sleeper.run()
        kernel = sleeper.figures() - before
    assert len({s["time"] for s in traced}) > 1
    assert has(under(traced, "nanosleep")[0], 4 * NAPS, kernel)
    # It slept when the trace began, so the start of that sleep is unknown.
    assert kernel.has(sum(s["count"] for s in traced), kernel.runs - 1)


def test_end_of_a_task_is_not_charged_to_the_next_of_its_pid(task: Callable[..., Task]) -> None:
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not last_pid.exists():
        pytest.skip("this kernel has no CONFIG_CHECKPOINT_RESTORE: pids cannot be chosen")
    first = task(nap)
    with tracing("offcputime", "-p", first.pid) as traced:
        first.run()
        first.kill()
        # Long enough to be reported.
        time.sleep(0.1)
        second = None
        while second is None or second.pid != first.pid:
            last_pid.write_text(str(first.pid - 1))
            second = task(nap)
        second.run()
    assert under(traced, "do_task_dead") == (0, 0)
    count, seconds = under(traced, "nanosleep")
    assert count > NAPS
    assert seconds >= count * NAP / 2
