# SPDX-License-Identifier: Apache-2.0
"""Round robin: each task runs for a short slice, and then goes to the tail."""

from __future__ import annotations

import os
import time

import pytest
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from shares import stopwatch
from workload import Child, MakeEnclave, Me, Workload, sched_field, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

MS = 10**6


def loops_per_switch(rr: Enclave, children: list[Child], ms: int) -> float:
    """Let ``children`` run for ``ms`` in total; returns their loops per switch of the enclave."""
    for child in children:
        child.progress()
    ran = stopwatch(children)
    loops, switches = sum(child.loops for child in children), rr.counters().switches
    until(lambda: sum(ran()) > ms * MS, f"{ms} ms of run time")
    return (sum(child.loops for child in children) - loops) / (rr.counters().switches - switches)


def involuntary(tid: int) -> int:
    """The number of involuntary switches of a task."""
    return int(sched_field(tid, "nr_involuntary_switches"))


def test_spinners_take_turns_and_share_equally(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="10ms")
    children = [workload.spinner(rr) for _ in range(3)]
    for child in children:
        child.progress()
    before = [involuntary(child.pid) for child in children]
    switches = rr.counters().switches
    ran = stopwatch(children)

    def turns() -> list[int]:
        return [involuntary(child.pid) - since for child, since in zip(children, before, strict=True)]

    until(lambda: min(turns()) >= 25, "each has 25 turns")
    out, used = turns(), sum(ran())
    switches = rr.counters().switches - switches
    # The numbers of turns are equal. Their times are less equal if the host preempts a virtual CPU.
    assert max(out) < 1.4 * min(out), out
    # A slice ends at a tick, so it is longer than set; preemption by a kernel thread makes some shorter.
    assert used / switches > 5 * MS
    until(lambda: min(ran()) > 0.15 * sum(ran()), "each has its share")


def test_slice_is_what_the_option_says(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="4ms")
    spinners = [workload.spinner(rr) for _ in range(2)]
    short = loops_per_switch(rr, spinners, 500)  # not time, which runs on while the host preempts a virtual CPU
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(rr.id).set_policy(POLICIES["rr"].parse({"slice": "200ms"}))
    assert loops_per_switch(rr, spinners, 1500) > 3 * short


def test_lone_spinner_keeps_its_cpu_slice_after_slice(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1-2", "rr", slice="5ms")
    spinner = workload.spinner(rr)
    switches = rr.counters().switches
    # At each end of a slice, the CPU asks for the next task, and there is none.
    until(lambda: rr.counters().switches > switches + 40, "40 slices are used up")
    assert spinner.cpus_seen <= rr.cpus
    spinner.stop()


def test_waking_task_waits_for_one_turn_of_each_other(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="5ms")
    spinners = [workload.spinner(rr) for _ in range(3)]
    for spinner in spinners:
        spinner.progress()
    rounds = 20

    def nap_and_count(me: Me) -> None:
        turns = 0
        for _ in range(rounds):
            before = sum(involuntary(spinner.pid) for spinner in spinners)
            time.sleep(0.001)
            turns += sum(involuntary(spinner.pid) for spinner in spinners) - before
        me.set(turns)

    # The sleeper counts by itself: its timer runs on the CPU that the spinners use.
    sleeper = workload.spawn(nap_and_count, rr)
    assert sleeper.wait() == 0
    print(f"{sleeper.value / rounds:.1f} turns of other tasks per wakeup")
    # Three turns of other tasks; three more if its own slice ends before it has counted.
    assert sleeper.value / rounds < 10


@pytest.mark.soak
def test_many_threads_all_finish(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1-2", "rr", slice="1ms")

    def yield_and_spin() -> None:
        os.sched_yield()
        end = time.thread_time_ns() + 2 * MS
        while time.thread_time_ns() < end:
            pass

    children = [workload.crowd(50, yield_and_spin, rr) for _ in range(4)]
    until(lambda: all(child.value == 50 for child in children), "all threads have started")
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 4
    assert rr.counters().runtime_ns > 4 * 50 * 2 * MS
