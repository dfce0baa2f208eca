# SPDX-License-Identifier: Apache-2.0
"""CPU time over fair shares, by scheduling class, and the delays of tasks, compared with the kernel's accounting."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.tools.trace.taskstats import TaskStats
from tracing import (
    Figures,
    Task,
    Traced,
    be_fifo,
    objects,
    only,
    run_together,
    run_trace,
    spin,
    spin_for,
    spin_until,
    tracing,
)

BURSTS = 15


def burst_and_nap() -> None:
    for _ in range(BURSTS):
        spin(0.003)
        time.sleep(0.001)


def total(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["count"] for row in rows)


def fairness(traced: Traced, name: str, nice: int) -> dict[int, int]:
    return {row["tenths"]: row["count"] for row in only(traced.named(name), nice=nice)}


def test_each_time_from_wakeup_to_block_counts_once_by_priority(task: Callable[..., Task]) -> None:
    worker = task(burst_and_nap)
    os.setpriority(os.PRIO_PROCESS, worker.pid, 5)
    with tracing("schedfair", "-t", worker.pid) as traced:
        before = worker.figures()
        worker.run()
        kernel = worker.figures() - before
    windows = traced.named("wake_to_block")
    assert {row["prio"] for row in windows} == {25}
    assert {row["nice"] for row in windows} == {5}
    assert kernel.has(total(windows), kernel.blocked)
    assert total(traced.named("full_trace")) == 1


def test_shares_of_spinners_are_in_proportion_to_the_cpu_time_they_got(
    task: Callable[..., Task], cpus: list[int]
) -> None:
    """They sleep between turns: a switch that BPF does not see makes one turn invalid. Their turns end at once."""
    start, turns, length = mmap.mmap(-1, 8), 12, 0.15

    def work() -> None:
        for turn in range(turns):
            end = struct.unpack("d", start)[0] + (turn + 1) * length
            spin_until(lambda end=end: time.monotonic() >= end)
            time.sleep(0.001)

    tasks = [task(work, cpu=cpus[-1], name=name) for name in ("crowd", "crowd", "nicer")]
    os.setpriority(os.PRIO_PROCESS, tasks[-1].pid, 10)
    with tracing("schedfair", "-c", "crowd") as equal, tracing("schedfair", "-t", tasks[-1].pid) as less:
        before = [one.figures() for one in tasks]
        start[:] = struct.pack("d", time.monotonic())
        run_together(tasks)
        ran = [(one.figures() - then).ran for one, then in zip(tasks, before, strict=True)]
    shares = sorted(Counter(fairness(equal, "full_trace", nice=0)).elements())
    assert len(shares) == 2
    # In tenths. Equal tasks get about equal times, but on a busy machine one may lead by some slices.
    (low, high), lead = shares, max(ran[:2]) / min(ran[:2])
    assert abs(high - low * lead) <= 1 + lead
    assert max(fairness(less, "full_trace", nice=10)) < low


def test_windows_are_of_the_interval_and_the_whole_trace_is_not(task: Callable[..., Task]) -> None:
    worker = task(burst_and_nap)
    with tracing("schedfair", "-t", worker.pid, 0.05) as traced:
        before = worker.figures()
        for _ in range(3):
            worker.run()
        kernel = worker.figures() - before
    assert kernel.has(total(traced.named("wake_to_block")), kernel.blocked)
    assert len(traced.named("full_trace")) > 1
    assert {row["count"] for row in traced.named("full_trace")} == {1}


def test_fairness_is_drawn_as_ghost_does() -> None:
    done = run_trace("schedfair", "--", "sh", "-c", "sleep 0.01; sleep 0.01")
    lines = done.stdout.splitlines()
    head = "Pr | .0 .1 .2 .3 .4 .5 .6 .7 .8 .9 1x 11 12 13 14 15 16 17 18 19  most   all"
    for title in ("Wake-to-block Fairness", "Full trace Fairness"):
        at = lines.index(title)
        assert lines[at + 1] == head
        fields = lines[at + 2].replace("|", " ").split()
        assert all(len(line) < 80 for line in lines[at : at + 3])
        scaled, (most, whole) = list(map(int, fields[1:21])), map(int, fields[21:])
        assert int(fields[0]) - 20 == os.nice(0)
        assert len(fields) == 23
        assert max(scaled) == 99
        assert most <= whole


def test_fifo_task_is_counted_as_fifo_for_the_cpu_time_it_used(task: Callable[..., Task], cpus: list[int]) -> None:
    def work() -> None:
        be_fifo()
        spin(0.2)

    spinner = task(work, cpu=cpus[-1])
    with tracing("schedclasstop", "-t", spinner.pid) as traced:
        before = spinner.figures()
        spinner.run()
        kernel = spinner.figures() - before
    assert kernel.ran >= 0.2
    assert {row["cpu"] for row in traced} == {cpus[-1]}
    seconds = {row["class"]: row["cpu_seconds"] for row in traced}
    assert set(seconds) <= {"CFS", "FIFO"}
    assert seconds["FIFO"] >= 0.2 - kernel.slack
    assert sum(seconds.values()) == pytest.approx(kernel.ran, rel=0.05, abs=kernel.slack)


@pytest.mark.parametrize(
    ("policy", "name"),
    [(os.SCHED_OTHER, "CFS"), (os.SCHED_BATCH, "BATCH"), (os.SCHED_IDLE, "SCHED_IDLE"), (os.SCHED_RR, "RR")],
    ids=["other", "batch", "idle", "rr"],
)
def test_each_policy_is_a_class_of_its_own(task: Callable[..., Task], policy: int, name: str) -> None:
    worker = task(lambda: spin(0.002))
    os.sched_setscheduler(worker.pid, policy, os.sched_param(1 if policy == os.SCHED_RR else 0))
    with tracing("schedclasstop", "-t", worker.pid) as traced:
        worker.run()
    assert {row["class"] for row in traced} == {name}


def test_no_cpu_spends_more_time_than_there_is(cpus: list[int]) -> None:
    started = time.monotonic()
    with tracing("schedclasstop") as traced:
        time.sleep(0.3)
    took = time.monotonic() - started
    for cpu in cpus:
        times = [row["cpu_seconds"] for row in only(traced, cpu=cpu)]
        assert times
        assert all(seconds > 0 for seconds in times)
        assert 0.2 <= sum(times) <= took


def test_only_the_selected_cpu_is_drawn(task: Callable[..., Task], cpus: list[int]) -> None:
    # Spinners that are never switched out: no switch has accounted their time yet.
    spinners = [task(lambda: spin_for(0.5)(), cpu=cpu) for cpu in cpus]
    for spinner in spinners:
        spinner.start()
    with tracing("schedclasstop", "-C", cpus[-1]) as traced:
        time.sleep(0.3)
    for spinner in spinners:
        spinner.finish()
    assert {row["cpu"] for row in traced} == {cpus[-1]}


def test_class_times_are_drawn_and_add_up() -> None:
    done = run_trace("schedclasstop", "--", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["CPU", "----|---"]
    assert any("c" in line.partition("|")[2] for line in lines[2:])
    total_line = next(line for line in lines if line.startswith("Total: "))
    by_class = [float(line.split(":")[1].split()[0]) for line in lines if "cpu-seconds" in line]
    assert sum(by_class) == pytest.approx(float(total_line.split()[-2]), abs=1e-5)


@pytest.fixture
def delay_accounting() -> Iterator[None]:
    """Enable the kernel's delay accounting."""
    sysctl = Path("/proc/sys/kernel/task_delayacct")
    if not sysctl.exists():
        pytest.skip("this kernel has no CONFIG_TASK_DELAY_ACCT")
    before = sysctl.read_text()
    sysctl.write_text("1")
    yield
    sysctl.write_text(before)


@pytest.mark.usefixtures("delay_accounting")
def test_waits_that_bpf_counts_are_those_of_taskstats_and_schedstat(task: Callable[..., Task], cpus: list[int]) -> None:
    pair = [task(burst_and_nap, cpu=cpus[-1], name=f"pair{n}") for n in range(2)]
    with TaskStats() as stats, tracing("delays", *(one.pid for one in pair)) as traced:
        before = [(one.figures(), stats.get(one.pid) or {}) for one in pair]
        run_together(pair)
        after = [(one.figures(), stats.get(one.pid) or {}) for one in pair]
    for number, (one, then, now) in enumerate(zip(pair, before, after, strict=True)):
        found: Figures = now[0] - then[0]
        [row] = only(traced.named("delays"), tid=one.pid)
        assert row["comm"] == f"pair{number}"
        assert row["cpu"] == found.runs == now[1]["cpu_count"] - then[1]["cpu_count"]
        assert row["cpu_ms"] == pytest.approx(found.waited * 1e3, abs=0.01)
        assert row["cpu_ms"] == pytest.approx((now[1]["cpu_delay_total"] - then[1]["cpu_delay_total"]) / 1e6, abs=0.01)
        assert found.has(row["bpf"])
        # A wait whose end was hidden may have been as long as some slices of others.
        hidden_ms = 20 * (found.runs - row["bpf"])
        assert row["bpf_ms"] == pytest.approx(row["cpu_ms"], rel=0.05, abs=1 + found.slack * 1e3 + hidden_ms)


@pytest.mark.parametrize("with_pids", [False, True])
def test_delays_of_filtered_tasks_count_from_the_start_of_the_trace(
    task: Callable[..., Task], cpus: list[int], with_pids: bool
) -> None:
    pair = [task(burst_and_nap, cpu=cpus[-1], name=f"pair{n}") for n in range(2)]
    run_together(pair)
    with tracing("delays", "-c", "pair0", *(one.pid for one in pair if with_pids)) as traced:
        before = pair[0].figures()
        run_together(pair)
        kernel = pair[0].figures() - before
    [row] = traced.named("delays")
    assert (row["tid"], row["comm"]) == (pair[0].pid, "pair0")
    assert row["cpu"] == kernel.runs
    assert row["cpu_ms"] == pytest.approx(kernel.waited * 1e3, abs=0.01)
    assert kernel.has(row["bpf"])


def test_delays_are_reported_each_interval_for_every_thread(task: Callable[..., Task]) -> None:
    def work() -> None:
        threads = [threading.Thread(target=burst_and_nap) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    process = task(work)
    with tracing("delays", process.pid, "-i", 0.05) as traced:
        before = process.figures()
        process.run()
        kernel = process.figures() - before
    tids = {row["tid"] for row in traced}
    # The threads start after the trace begins, and end before it ends.
    assert process.pid in tids
    assert len(tids) == 3
    assert kernel.has(sum(row["bpf"] for row in only(traced, tid=process.pid)))


def test_threads_that_have_ended_have_all_of_the_kernels_figures(task: Callable[..., Task]) -> None:
    hear, tell = os.pipe()

    def short_life() -> None:
        burst_and_nap()
        figures = Path("/proc/thread-self/schedstat").read_text()
        os.write(tell, f"{threading.get_native_id()} {figures}".encode())

    def work() -> None:
        for _ in range(3):
            thread = threading.Thread(target=short_life)
            thread.start()
            thread.join()

    process = task(work)
    with tracing("delays", process.pid) as traced:
        process.run()
    lives = [tuple(map(int, line.split())) for line in os.read(hear, 4096).splitlines()]
    os.close(hear)
    os.close(tell)
    assert len(lives) == 3
    for tid, _, waited_ns, runs in lives:
        [row] = only(traced.named("delays"), tid=tid)
        assert runs > BURSTS
        assert runs <= row["cpu"] <= runs + 5
        assert waited_ns / 1e6 <= row["cpu_ms"] + 0.001


def test_exits_that_are_not_read_in_time_are_reported_as_missed() -> None:
    with TaskStats() as stats, stats.exits() as exits:
        exits._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's minimum
        for _ in range(20):
            subprocess.run(["true"], check=True)
        assert len(exits.read()) < 20
        assert exits.lost
        with subprocess.Popen(["true"]) as last:
            last.wait()
        assert last.pid in exits.read()


def test_delays_of_a_process_are_those_of_each_of_its_threads() -> None:
    sleeping = "for _ in range(10**6): time.sleep(0.001)"
    script = f"import threading, time\ndef sleeps():\n {sleeping}\n" + (
        "for _ in range(3): threading.Thread(target=sleeps, daemon=True).start()\nprint(flush=True)\nsleeps()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tids = {int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()}
        done = run_trace("delays", process.pid, "--json", "-i", 1, "-n", 1)
        process.kill()
    assert done.returncode == 0, done.stderr
    rows = [line for line in objects(done.stdout) if line["type"] == "row"]
    assert len(tids) == 4
    assert {row["tid"] for row in rows} == tids
    assert all(row["bpf"] > 10 and row["cpu"] > 10 for row in rows)


def test_delays_of_a_command_are_those_of_all_its_tasks() -> None:
    done = run_trace("delays", "--", "sh", "-c", "sleep 0.01; sleep 0.01; exit 5")
    assert done.returncode == 5
    head, _, *rows = done.stdout.rstrip().splitlines()
    assert head.split()[:6] == ["tid", "comm", "cpu", "cpu_ms", "bpf", "bpf_ms"]
    assert len({row.split()[0] for row in rows}) == 3
