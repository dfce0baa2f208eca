# SPDX-License-Identifier: Apache-2.0
"""Round robin: a short slice for everybody, and then the tail."""

from __future__ import annotations

import os
import time

import pytest
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from workload import Child, MakeEnclave, Workload, runtime_ns, sched_field, until

pytestmark = pytest.mark.usefixtures("quiet")

MS = 10**6


def watch(rr: Enclave, children: list[Child], ms: int) -> tuple[list[int], list[int], int]:
    """Let them run ``ms`` in all: what each ran, how often each was switched out, and the enclave's switches."""

    def look() -> tuple[list[int], list[int], int]:
        ran = [runtime_ns(child.pid) for child in children]
        out = [int(sched_field(child.pid, "nr_involuntary_switches")) for child in children]
        return ran, out, rr.counters().switches

    for child in children:
        child.progress()
    ran, out, switches = look()
    until(lambda: sum(runtime_ns(child.pid) for child in children) - sum(ran) > ms * MS, f"{ms} ms of run time")
    ran_now, out_now, switches_now = look()
    return (
        [now - before for now, before in zip(ran_now, ran, strict=True)],
        [now - before for now, before in zip(out_now, out, strict=True)],
        switches_now - switches,
    )


def test_spinners_take_turns_and_share_equally(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="10ms")
    ran, out, switches = watch(rr, [workload.spinner(rr) for _ in range(3)], 1000)
    # Turns are equal. Time is less so where a virtual CPU is itself taken away in the middle of one.
    assert max(out) < 1.4 * min(out), out
    assert min(ran) > 0.15 * sum(ran), ran
    # A slice ends at a tick, so it is longer; shorter are those that a kernel thread came into.
    assert sum(ran) / switches > 5 * MS


def test_slice_is_what_the_option_says(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="4ms")
    spinners = [workload.spinner(rr) for _ in range(2)]
    ran, _, switches = watch(rr, spinners, 500)
    short = sum(ran) / switches
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(rr.id).swap(POLICIES["rr"], {"slice": "200ms"})
    ran, _, switches = watch(rr, spinners, 1500)
    assert sum(ran) / switches > 3 * short


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
    for _ in range(3):
        workload.spinner(rr).progress()
    sleeper = workload.sleeper(rr)
    before = rr.counters().switches
    rounds = 20
    for _ in range(rounds):
        loops = sleeper.loops
        sleeper.wake()
        until(lambda loops=loops: sleeper.loops > loops, "the sleeper ran among spinners")
    # Three turns of others and its own; the rest of the bound is for this process to notice.
    assert (rr.counters().switches - before) / rounds < 30


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
