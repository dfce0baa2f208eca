# SPDX-License-Identifier: Apache-2.0
"""cfs_bpf: CPU time in proportion to weight, by per-CPU queues that steal from each other, without losing a task."""

from __future__ import annotations

import os
import time
from random import Random

import pytest
from agents import MakeAgentProcess
from command import read_sources_once
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.policy_banks import PolicyBanks
from ghostbpf.schedulers.registry import POLICIES
from shares import MS, expect_shares, renice, spinners, stopwatch
from workload import (
    Child,
    MakeEnclave,
    Me,
    Workload,
    all_cpus,
    getcpu,
    in_ext,
    offline,
    present_cpus,
    runtime_ns,
    sched_field,
    until,
)

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


def _simple() -> None:
    time.sleep(0.01)
    os.sched_yield()
    time.sleep(0.01)


def _busy() -> None:
    end = time.thread_time_ns() + 10 * MS
    while time.thread_time_ns() < end:
        pass


@pytest.mark.kernel_independent
def test_simple(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    crowd = workload.crowd(1, _simple, one)
    until(lambda: crowd.value == 1, "the thread has started")
    crowd.wake()
    assert crowd.wait() == 0
    assert one.nr_tasks == 0


@pytest.mark.soak
def test_simple_many(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    crowd = workload.crowd(1000, _simple, one)
    until(lambda: crowd.value == 1000, "all threads have started")
    assert one.nr_tasks == 1001
    before = one.counters()
    crowd.wake()
    assert crowd.wait() == 0
    assert one.counters().switches - before.switches >= 3 * 1000
    assert one.nr_tasks == 0


@pytest.mark.soak
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.marathon)])
def test_busy_run_for(workload: Workload, enclave: MakeEnclave, count: int) -> None:
    one = enclave("1-3", "cfs_bpf")
    children = [workload.crowd(count // 5, _busy, one) for _ in range(5)]
    until(lambda: all(child.value == count // 5 for child in children), "all threads have started")
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 5
    assert one.counters().runtime_ns >= count * 10 * MS


@pytest.mark.kernel_independent
def test_nice_5_gets_a_third_of_nice_0(workload: Workload, enclave: MakeEnclave) -> None:
    children = spinners(workload, enclave("1", "cfs_bpf"), nices=(0, 5))
    expect_shares(children, (0, 5), 800, 0.1)


@pytest.mark.soak
def test_shares_are_the_kernels_own_weights_within_5_percent(workload: Workload, enclave: MakeEnclave) -> None:
    children = spinners(workload, enclave("1", "cfs_bpf"), nices=(0, 5, -5))
    expect_shares(children, (0, 5, -5), 10_000, 0.05)


@pytest.mark.soak
def test_shares_are_those_of_each_cpu(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    on_each = [spinners(workload, one, cpus=[cpu], nices=(0, 5, 10)) for cpu in one.cpus]
    for children in on_each:
        expect_shares(children, (0, 5, 10), 5000, 0.1)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_new_nice_value_counts_from_now_on(workload: Workload, enclave: MakeEnclave) -> None:
    children = spinners(workload, enclave("1", "cfs_bpf"), nices=(0, 0))
    expect_shares(children, (0, 0), 400, 0.2)
    renice(children[0], 5)
    expect_shares(children, (5, 0), 800, 0.15)


@pytest.mark.kernel_independent
@pytest.mark.parametrize("kind", ["new", pytest.param("woken", marks=pytest.mark.soak)])
def test_late_task_gets_no_more_than_its_share(workload: Workload, enclave: MakeEnclave, kind: str) -> None:
    """A new or sleeping task has used no CPU time, but does not get all the time that it has not used."""
    one = enclave("1", "cfs_bpf")

    def spins(me: Me) -> None:
        while not me.stopped:
            me.note()

    sleeper = workload.sleeper(one, then=spins)
    hog = workload.spinner(one)
    until(lambda: runtime_ns(hog.pid) > 700 * MS, "the hog runs for 700 ms")
    late = sleeper if kind == "woken" else workload.spawn(spins, one, start=False)
    ran = stopwatch([hog, late])
    late.wake()
    until(lambda: ran()[1] > 450 * MS, "the late task runs for 450 ms")
    # The policy makes up for a turn lengthened by the host, but not for an advantage that it gives.
    until(lambda: ran()[1] - ran()[0] < 250 * MS, "the hog catches up")


@pytest.mark.kernel_independent
def test_lone_spinner_is_never_preempted(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    child = workload.spinner(one)
    until(lambda: runtime_ns(child.pid) > 300 * MS, "run time of fifty latencies")
    assert one.counters().preempted == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_yield_lets_the_next_have_a_turn(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1", "cfs_bpf")
    hog = workload.spinner(one)

    def yields(me: Me) -> None:
        while not me.stopped:
            me.note()
            os.sched_yield()

    yielder = workload.spawn(yields, one)
    yielder.progress()
    turns, loops = sched_field(hog.pid, "nr_involuntary_switches"), yielder.loops
    yielder.progress(20)
    loops = yielder.loops - loops
    assert sched_field(hog.pid, "nr_involuntary_switches") - turns >= loops / 2


@pytest.mark.kernel_independent
def test_idle_cpu_takes_a_task_that_waits_for_another_cpu(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    hogs = [workload.spinner(one, cpus=[cpu]) for cpu in (1, 1, 2)]
    for hog in hogs:
        hog.progress()
    for hog in hogs[:2]:
        os.sched_setaffinity(hog.pid, present_cpus())
    hogs[2].stop()
    until(lambda: {hog.at for hog in hogs[:2]} == {1, 2}, "each has a CPU")


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_new_tasks_are_spread_over_busy_cpus(workload: Workload, enclave: MakeEnclave) -> None:
    """The tasks come from one CPU outside, so all have the same nearest CPU; no CPU of the enclave is idle."""
    one = enclave("1-3", "cfs_bpf")
    for cpu in one.cpus:
        workload.spinner(one, cpus=[cpu]).progress()

    def show_and_spin(me: Me) -> None:
        me.set(1 + getcpu())
        while not me.stopped:
            me.note()

    late = [workload.spawn(show_and_spin, one) for _ in range(6)]
    for child in late:
        child.progress()
    assert {child.value - 1 for child in late} == {1, 2, 3}, "the CPUs on which they ran first"


@pytest.mark.kernel_independent
def test_changing_affinities_are_honoured(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-3", "cfs_bpf")
    children = [workload.napper(one) for _ in range(4)] + [workload.spinner(one) for _ in range(4)]
    for turn in range(30):
        child = children[turn % 8]
        mask = {1 + turn % 3} if turn % 2 else {1 + turn % 3, 1 + (turn + 1) % 3}
        os.sched_setaffinity(child.pid, mask)
        renice(child, turn % 20)
        child.forget()
        child.progress(20)
        assert child.cpus_seen <= CpuSet(mask)


@pytest.mark.soak
def test_nice_19_beside_nice_minus_20_runs_before_the_kernel_ejects_the_core(
    workload: Workload, enclave: MakeEnclave
) -> None:
    """By weight, one tick of nice 19 equals 35 s of nice -20, and the kernel ejects a scheduler after 30 s."""
    one = enclave("1", "cfs_bpf")
    low, _ = spinners(workload, one, nices=(19, -20))
    for _ in range(3):
        low.progress()
        began, loops = time.monotonic(), low.loops
        until(lambda loops=loops: low.loops > loops + 1000, "it runs")
        print(f"{low.loops - loops} loops in {time.monotonic() - began:.1f} s")
    assert sched_ext.status().state == "enabled"


@pytest.mark.parametrize("free", [pytest.param(True, marks=pytest.mark.soak), False], ids=["idle", "busy"])
def test_tasks_waiting_for_a_cpu_that_a_hog_takes_run_elsewhere(
    workload: Workload, enclave: MakeEnclave, free: bool
) -> None:
    """The hog is in the fair class, which preempts the ext class."""
    one = enclave("1-2", "cfs_bpf")
    waiting = [workload.spinner(one, cpus=[1]) for _ in range(3)]
    for child in waiting:
        child.progress()
    others = [] if free else [workload.spinner(one, cpus=[2])]
    hog = workload.spinner(cpus=[1])
    hog.progress()
    for child in waiting:
        os.sched_setaffinity(child.pid, present_cpus())
    for child in waiting:
        child.forget(wait=False)
    for child in (*waiting, *others):
        child.progress(100)
    assert all(child.cpus_seen <= one.cpus for child in waiting)
    hog.stop()
    until(lambda: {child.at for child in waiting} == {1, 2}, "the CPU is used again")


def test_enclave_loses_a_cpu_under_load_and_gets_it_back(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "cfs_bpf")
    children = [workload.spinner(one) for _ in range(4)] + [workload.spinner(one, cpus=[2])]
    for child in children:
        child.progress()
    with offline(2):
        for child in children[:4]:
            child.forget()
            child.progress(50)
            assert str(child.cpus_seen) == "1"
        children[4].progress(50)
        assert 2 not in all_cpus()
    until(lambda: {child.at for child in children} == {1, 2}, "the CPU is used again")
    assert sched_ext.status().state == "enabled"


def _load(workload: Workload, enclave: Enclave) -> list[Child]:
    def yields(me: Me) -> None:
        while not me.stopped:
            me.note()
            os.sched_yield()

    pinned = [workload.spinner(enclave, cpus=[1 + number % 2]) for number in range(6)]
    nappers = [workload.napper(enclave, busy_ms=0, nap_ms=5) for _ in range(8)]
    return pinned + nappers + [workload.spawn(yields, enclave) for _ in range(3)]


def _check_all_run(enclave: Enclave, children: list[Child]) -> None:
    assert {task.tid for task in enclave.tasks()} == {child.pid for child in children}
    for child in children:
        assert in_ext(child.pid)
        child.progress()


@pytest.mark.parametrize(
    "rounds", [pytest.param(2, marks=pytest.mark.kernel_independent), pytest.param(50, marks=pytest.mark.soak)]
)
def test_swaps_under_load_lose_no_task(
    workload: Workload, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch, rng: Random, rounds: int
) -> None:
    read_sources_once(monkeypatch, *(POLICIES[name] for name in ("biff", "cfs_bpf", "rr")))
    one = enclave("1-2", "cfs_bpf")
    children = _load(workload, one)
    for number in range(rounds):
        one.set_policy(POLICIES[("biff", "cfs_bpf", "rr", "cfs_bpf", "cfs_bpf")[number % 5]])
        time.sleep(rng.random() * 0.02)
        if number % 5 == 0 or rounds == 2:
            _check_all_run(one, children)
    _check_all_run(one, children)
    assert sched_ext.status().state == "enabled"


@pytest.mark.soak
def test_upgrades_from_and_to_agents_lose_no_task(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1-3", "fifo_centralized", slice="5ms")
    children = _load(workload, one)
    for policy, options in (("cfs", {}), ("fifo_centralized", {"fastpath": "off", "slice": "5ms"}), ("cfs", {})):
        _check_all_run(one, children)
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).set_policy(POLICIES["cfs_bpf"])
        until(lambda agents=agents: not agents.check(), "the agent leaves without an error")
        _check_all_run(one, children)
        _, agents = agent_process(one, policy, **options)
    _check_all_run(one, children)


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["biff", "cfs_bpf"])
def test_tasks_waiting_when_the_loader_dies_in_a_swap_run_on(
    workload: Workload, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """No loader drains the per-CPU queues, and the new policy does not serve them."""
    one = enclave("1-2", "cfs_bpf", **{"latency": "1s", "min-granularity": "1s"})
    children = [workload.spinner(one, cpus=[1 + number % 2]) for number in range(6)]
    for child in children:
        child.progress()
    with monkeypatch.context() as patch:
        patch.setattr(PolicyBanks, "_finish_draining", lambda banks: None)
        one.set_policy(POLICIES[policy])
    assert one._record.draining
    _check_all_run(one, children)
    with Enclaves.change():
        assert not one._record.draining, "the next command drains the queues"
    _check_all_run(one, children)
