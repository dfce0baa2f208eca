# SPDX-License-Identifier: Apache-2.0
"""Round robin: a short slice for everybody, and then the tail."""

from __future__ import annotations

import os
import time

import pytest
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from shares import stopwatch
from workload import Child, MakeEnclave, Me, Workload, sched_field, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]

MS = 10**6


def loops_per_switch(rr: Enclave, children: list[Child], ms: int) -> float:
    """Let them run ``ms`` in all: how many loops they did from one of the enclave's switches to the next."""
    for child in children:
        child.progress()
    ran = stopwatch(children)
    loops, switches = sum(child.loops for child in children), rr.counters().switches
    until(lambda: sum(ran()) > ms * MS, f"{ms} ms of run time")
    return (sum(child.loops for child in children) - loops) / (rr.counters().switches - switches)


def involuntary(tid: int) -> int:
    """How often it was switched out, though it did not want to."""
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

    until(lambda: min(turns()) >= 25, "each has had 25 turns")
    out, used = turns(), sum(ran())
    switches = rr.counters().switches - switches
    # Turns are equal. Time is less so where a virtual CPU is itself taken away in the middle of one.
    assert max(out) < 1.4 * min(out), out
    # A slice ends at a tick, so it is longer; shorter are those that a kernel thread came into.
    assert used / switches > 5 * MS
    until(lambda: min(ran()) > 0.15 * sum(ran()), "each has had its share")


def test_slice_is_what_the_option_says(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="4ms")
    spinners = [workload.spinner(rr) for _ in range(2)]
    short = loops_per_switch(rr, spinners, 500)  # and not time, which goes on when a virtual CPU is taken away
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(rr.id).set_policy(POLICIES["rr"].parse({"slice": "200ms"}))
    assert loops_per_switch(rr, spinners, 1500) > 3 * short


def test_lone_spinner_goes_on_slice_after_slice(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1-2", "rr", slice="5ms")
    spinner = workload.spinner(rr)
    switches = rr.counters().switches
    # So often it is asked for the next task, and there is none.
    until(lambda: rr.counters().switches > switches + 40, "40 slices are used up")
    assert spinner.cpus_seen <= rr.cpus
    spinner.stop()


def test_waking_task_waits_for_its_turn_only(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="5ms")
    spinners = [workload.spinner(rr) for _ in range(3)]
    for spinner in spinners:
        spinner.progress()
    rounds = 20

    def nap_and_look(me: Me) -> None:
        turns = 0
        for _ in range(rounds):
            before = sum(involuntary(spinner.pid) for spinner in spinners)
            time.sleep(0.001)
            turns += sum(involuntary(spinner.pid) for spinner in spinners) - before
        me.set(turns)

    # It counts itself, for it sleeps by the clock of the CPU that the others spin on.
    sleeper = workload.spawn(nap_and_look, rr)
    assert sleeper.wait() == 0
    print(f"{sleeper.value / rounds:.1f} turns of others")
    # Three turns of others; as many again if its own is over before it has looked.
    assert sleeper.value / rounds < 10


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
