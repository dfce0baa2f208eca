# SPDX-License-Identifier: Apache-2.0
"""Tracers beside sched_ext: they see its tasks, and their counts are those of the kernel and of the core."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from command import ghostbpf
from ghostbpf.loaders import Module, compile, sched_ext
from trace_tool import traced
from workload import Child, MakeEnclave, Me, Workload, runtime_ns, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

ENDLESS = "10s"
#: The number of wakeups in tests that count them.
WAKEUPS = 23
EXAMPLES = Path(__file__).parents[2] / "examples"


def turns(pid: int) -> int:
    """The number of times that the kernel put the task on a CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[2])


def wake(sleeper: Child, times: int = WAKEUPS) -> None:
    """Wake the sleeper a number of times; wait each time until it sleeps again."""
    for _ in range(times):
        loops = sleeper.loops
        sleeper.wake()
        until(lambda loops=loops: sleeper.loops > loops, f"{sleeper} ran")
        sleeper.asleep()


def waiter(me: Me) -> None:
    """A body with a task name of its own."""
    Path("/proc/self/comm").write_text("waiter")
    me.note()


def hold(holder: Child) -> None:
    """Wake a holder, which spins, and wait until it has the CPU."""
    loops = holder.loops
    holder.wake()
    until(lambda: holder.loops > loops, f"{holder} has the CPU")


def test_runqlat_counts_each_turn_of_an_enclaves_task(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    sleeper = workload.sleeper(biff)
    with traced("runqlat", "-t", sleeper.pid) as trace:
        before = turns(sleeper.pid)
        wake(sleeper)
        came_on = turns(sleeper.pid) - before
    assert came_on >= WAKEUPS
    assert trace.histogram("wait")["count"] == came_on


def test_runqlat_sees_only_the_enclave_it_is_asked_for(workload: Workload, enclave: MakeEnclave) -> None:
    here, there = enclave("1"), enclave("2")
    inside, outside = workload.sleeper(here), workload.sleeper(there)
    with traced("runqlat", "-L", "--enclave", here.id) as trace:
        wake(outside)
        wake(inside)
    assert {line["by"]["tid"] for line in trace.of("histogram", "wait")} == {inside.pid}


def test_schedlat_separates_the_wait_for_the_policy_from_the_wait_for_the_cpu(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1", slice=ENDLESS)
    holder, sleeper = workload.sleeper(biff, then=lambda me: me.spin(300)), workload.sleeper(biff)
    with traced("schedlat", "-t", sleeper.pid) as trace:
        hold(holder)
        sleeper.wake()
        woken = time.monotonic()
        holder.asleep()
        waited_us = (time.monotonic() - woken) * 1e6
        until(lambda: sleeper.loops == 1, f"{sleeper} ran")
    decided, started, whole = (trace.histogram(n) for n in ("runnable_to_latched", "latched_to_run", "runnable_to_run"))
    assert decided["count"] == started["count"] == whole["count"]
    # Biff decides when a CPU dispatches: here, when the holder sleeps.
    assert 100_000 < decided["max"] < waited_us + 1e6
    assert decided["avg"] + started["avg"] == pytest.approx(whole["avg"], abs=1)


def test_schedlat_shows_no_wait_for_the_policy_of_a_task_in_no_enclave(workload: Workload) -> None:
    sleeper = workload.sleeper()
    with traced("schedlat", "-t", sleeper.pid) as trace:
        wake(sleeper)
    assert {line["name"] for line in trace.of("histogram", "runnable_to_run")} == {"runnable_to_run"}
    assert not trace.of("histogram", "runnable_to_latched")


def test_dsqlat_names_the_queue_that_tasks_waited_on(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice=ENDLESS)
    holder = workload.sleeper(biff, then=lambda me: me.spin(300))
    waiters = [workload.sleeper(biff, then=waiter) for _ in range(5)]
    for one in waiters:
        wake(one, 1)
    with traced("dsqlat", "-c", "waiter") as trace:
        hold(holder)
        for one in waiters:
            one.wake()
        until(lambda: all(one.loops == 2 for one in waiters), "the waiters ran")
        for one in waiters:
            one.asleep()
    found = trace.histogram("wait", dsq=f"PENDING {biff.id}", enclave=biff.id)
    assert found["count"] >= 5
    assert found["max"] > 100_000


def test_dsqlat_sees_any_scheduler(workload: Workload) -> None:
    module = Module(compile(EXAMPLES / "fifo.bpf.c"))
    with sched_ext.attach(module, "fifo_", name="fifo") as link:
        spinners = [workload.spinner(cpus=[1]) for _ in range(3)]
        with traced("dsqlat", "-p", spinners[0].pid) as trace:
            before = turns(spinners[0].pid)
            until(lambda: turns(spinners[0].pid) >= before + 5, "three take turns")
        link.detach()
    assert sched_ext.wait_disabled()
    module.close()
    assert trace.histogram("wait", dsq="0x0", enclave=0)["count"] >= 4


def test_schedclasstop_counts_ext_as_the_core_does(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    spinner = workload.spinner(biff)
    spinner.progress()
    with traced("schedclasstop", "-p", spinner.pid) as trace:
        before, began = runtime_ns(spinner.pid), time.monotonic()
        until(lambda: runtime_ns(spinner.pid) - before > 5 * 10**8, f"{spinner} has run for half a second")
        ran = (runtime_ns(spinner.pid) - before) / 1e9
    took = time.monotonic() - began
    (row,) = trace.rows("class", cpu=1)
    assert row["class"] == "EXT"
    assert ran * 0.95 < row["cpu_seconds"] < took + 0.1


def test_schedghostidle_counts_each_task_that_ends_an_idle_spell(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    sleeper = workload.sleeper(biff)
    with traced("schedghostidle") as trace:
        before = biff.counters().switches
        wake(sleeper)
        came_on = biff.counters().switches - before
    (totals,) = trace.rows("latches")
    assert WAKEUPS <= totals["latches"] <= came_on
    assert totals["bpf_latches"] == totals["latches"]
    assert 0 < totals["idle_to_bpf_latches"] <= totals["latches"]
    assert trace.histogram("idle_to_latched")["count"] == totals["latches"]


def test_schedrun_g_leaves_out_tasks_of_other_classes(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    inside, outside = workload.sleeper(biff), workload.sleeper(cpus=[2])
    with traced("schedrun", "-g", "-L") as trace:
        wake(outside)
        wake(inside)
    assert {line["by"]["tid"] for line in trace.of("histogram", "all")} == {inside.pid}
    assert trace.histogram("blocked", tid=inside.pid)["count"] == WAKEUPS


def test_runqlen_sees_sched_ext_tasks_that_wait(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice=ENDLESS)
    for _ in range(3):
        workload.spinner(biff, cpus=[1])
    until(lambda: biff.nr_tasks == 3 and any(task.on_cpu for task in biff.tasks()), "one runs")
    with traced("runqlen", "--per-cpu") as trace:
        time.sleep(1)
    samples = trace.histogram("runqlen", cpu=1)
    two = sum(bucket["count"] for bucket in samples["buckets"] if bucket["from"] >= 2)
    assert samples["count"] > 20
    assert two >= 0.8 * samples["count"]


def test_migrations_names_the_dispatch_as_the_reason(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice=ENDLESS)
    keeper = workload.sleeper(biff, cpus=[1], then=lambda me: me.spin(600))
    leaver = workload.sleeper(biff, cpus=[2], then=lambda me: me.spin(200))
    mover = workload.sleeper(biff, cpus=[1, 2])
    until(lambda: wake(mover, 1) or mover.at == 1, "it was last on CPU 1")
    with traced("migrations", "-t", mover.pid) as trace:
        hold(keeper)
        hold(leaver)
        loops = mover.loops
        mover.wake()
        until(lambda: mover.loops > loops, f"{mover} ran")
    assert mover.at == 2
    (row,) = trace.rows("migrations", tid=mover.pid)
    assert (row["from"], row["to"], row["reason"], row["count"]) == (1, 2, "ext", 1)


def test_runqlat_and_migrations_agree_with_perf(enclave: MakeEnclave) -> None:
    biff = enclave("1-3")
    perf = "perf stat -x, -a -e sched:sched_switch --filter 'next_comm == \"sched-messaging\"'"
    perf += " -e sched:sched_migrate_task --filter 'comm == \"sched-messaging\"'"
    command = f"read go; exec {perf} -- perf bench sched messaging -g 1 -l 50"
    with traced("runqlat", "-c", "sched-messaging") as waits, traced("migrations", "-c", "sched-messaging") as moves:
        child = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        biff.add(child.pid)
        output = child.communicate("go\n")[1]
    counts = {m[2]: int(m[1]) for m in re.finditer(r"^(\d+),,(sched:\w+)", output, re.MULTILINE)}
    assert counts["sched:sched_switch"] > 100, output
    # One tool takes a task's name when its wait begins, the other when it gets a CPU.
    assert waits.histogram("wait")["count"] == pytest.approx(counts["sched:sched_switch"], rel=0.02)
    moved = sum(row["count"] for row in moves.of("row", "matrix"))
    assert moved == pytest.approx(counts["sched:sched_migrate_task"], rel=0.02, abs=2)


def test_tracer_says_that_there_is_no_enclave(enclave: MakeEnclave) -> None:
    done = ghostbpf("trace", "runqlat", "--enclave", "9", "-d", "1")
    assert (done.status, done.out) == (1, "")
    assert "there is no enclave 9" in done.err
    one = enclave("1")
    done = ghostbpf("trace", "runqlat", "--enclave", one.id + 1, "-d", "1")
    assert (done.status, done.out) == (1, "")
    assert f"there is no enclave {one.id + 1}" in done.err
