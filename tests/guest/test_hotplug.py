# SPDX-License-Identifier: Apache-2.0
"""Hotplug of CPUs of an enclave."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pytest
from ghostbpf.loaders import sched_ext as kernel
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.tasks import SCHED_EXT
from workload import EITHER_FIFO, Child, MakeEnclave, Me, Workload, in_ext, offline, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


def run(children: Iterable[Child], loops: int = 50) -> None:
    """Wait until each child has done ``loops`` more loops."""
    for child in children:
        child.progress(loops)


def come_back(children: Iterable[Child], one: Enclave) -> None:
    """Wait until all children run on the enclave's CPUs, and check that they stay."""
    for child in children:
        until(lambda child=child: child.at in one.cpus, f"{child} is back in the enclave")
        child.forget()
        child.progress(100)
        assert child.cpus_seen <= one.cpus


def used(children: Iterable[Child]) -> CpuSet:
    return CpuSet(child.at for child in children)


@pytest.fixture(autouse=True)
def still_attached(enclave: MakeEnclave) -> Iterator[None]:
    """Check that hotplug has not ejected the core, as it ejects a scheduler without cpu_online() and cpu_offline()."""
    yield
    assert kernel.status().ops == "ghostbpf"


@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_enclave_loses_a_cpu_under_load_and_gets_it_back(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    one = enclave("1-2", policy, slice="5ms")
    spinners = [workload.spinner(one) for _ in range(4)]
    sleeper = workload.sleeper(one)
    run(spinners)
    with offline(2):
        for spinner in spinners:
            spinner.forget()
        run(spinners)
        sleeper.wake()
        until(lambda: sleeper.loops == 1, "the sleeper runs")
        assert {str(child.cpus_seen) for child in (*spinners, sleeper)} == {"1"}
        assert all(in_ext(spinner.pid) for spinner in spinners)
        assert str(one.cpus) == "1-2"
    until(lambda: used(spinners) == one.cpus, "the CPU is used again")
    assert one.counters().affinity_misses == 0
    assert one.nr_tasks == 5


def test_tasks_of_an_enclave_without_cpus_run_elsewhere(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("3", slice="5ms")
    spinners = [workload.spinner(biff) for _ in range(2)]
    sleeper = workload.sleeper(biff)
    run(spinners)
    with offline(3):
        for spinner in spinners:
            spinner.forget()
        run(spinners)
        assert all(child.cpus_seen.isdisjoint(biff.cpus) for child in spinners)
        assert biff.counters().affinity_misses > 0
        for turn in range(5):
            sleeper.wake()
            until(lambda turn=turn: sleeper.loops > turn, "the sleeper runs")
            sleeper.asleep()
        late = workload.spinner(biff)
        late.progress(50)
    come_back((*spinners, late), biff)
    sleeper.wake()
    until(lambda: sleeper.loops > 5, "the sleeper runs")
    assert sleeper.at == 3


@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_queue_of_a_cpu_that_goes_offline_is_served_elsewhere(
    workload: Workload, enclave: MakeEnclave, policy: str
) -> None:
    one = enclave("3", policy, slice="50ms")
    spinners = [workload.spinner(one) for _ in range(6)]
    spinners[0].progress()
    with offline(3):
        run(spinners)
    come_back(spinners, one)


def walk(me: Me) -> None:
    """Resolve a path: the task is an RCU reader nearly all the time, also while it is preempted."""
    path = "/" + "proc/../" * 400
    while not me.stopped:
        os.stat(path)
        me.note()


def test_preempted_rcu_readers_do_not_wait_for_a_cpu_that_goes_offline(
    workload: Workload, enclave: MakeEnclave
) -> None:
    """A CPU goes offline after an RCU grace period."""
    one = enclave("3", "rr", slice="1ms")
    walkers = [workload.spawn(walk, one) for _ in range(6)]
    for _ in range(3):
        run(walkers, 1)
        with offline(3):
            run(walkers, 1)


def test_preempted_rcu_reader_bound_to_a_cpu_that_goes_offline_runs_on(
    workload: Workload, enclave: MakeEnclave
) -> None:
    """CPU 2 is the enclave's, CPU 3 is not."""
    one = enclave("1-2")
    walker = workload.spawn(walk, one)
    for cpu in (2, 3, 2, 3):
        os.sched_setaffinity(walker.pid, {cpu})
        run([walker], 1)
        with offline(cpu):
            run([walker], 1)


def test_enclave_that_loses_its_cpus_leaves_the_other_enclave_alone(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1", slice="5ms"), enclave("2-3", "rr")
    mine, theirs = ([workload.spinner(one) for _ in range(3)] for one in (first, second))
    run((*mine, *theirs))
    with offline(1):
        run((*mine, *theirs))
        for child in theirs:
            child.forget()
        run(theirs)
        assert all(child.cpus_seen <= second.cpus for child in theirs)
    come_back(mine, first)
    assert all(child.cpus_seen <= second.cpus for child in theirs)


@pytest.mark.parametrize("spinners", [pytest.param(1, marks=pytest.mark.soak), 4])
@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_tasks_bound_to_a_cpu_that_goes_offline_run_on(
    workload: Workload, enclave: MakeEnclave, policy: str, spinners: int
) -> None:
    """The kernel widens their affinity, as in any class, but not while they wait on a queue of the core."""
    one = enclave("1-2", policy)
    bound = [workload.spinner(one, cpus=[2]) for _ in range(spinners)]
    run(bound, 1)
    with offline(2):
        run(bound, 100)
        assert used(bound).isdisjoint(CpuSet([2]))
        assert all(os.sched_getaffinity(child.pid) != {2} for child in bound)
    come_back(bound, one)


@pytest.mark.kernel_independent
def test_tasks_of_no_enclave_bound_to_a_cpu_that_goes_offline_run_on(workload: Workload, enclave: MakeEnclave) -> None:
    enclave("1")
    bound = [workload.spinner(cpus=[2], start=False) for _ in range(4)]
    for child in bound:
        os.sched_setscheduler(child.pid, SCHED_EXT, os.sched_param(0))
        child.wake()
    run(bound, 1)
    with offline(2):
        run(bound, 100)
    run(bound)


@pytest.mark.kernel_independent
def test_hotplug_of_a_cpu_of_no_enclave_leaves_the_enclave_alone(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    spinners = [workload.spinner(biff) for _ in range(3)]
    with offline(3):
        run(spinners)
    run(spinners)
    assert all(child.cpus_seen <= biff.cpus for child in spinners)


@pytest.mark.own_core
def test_cpu_that_was_offline_at_attach_can_be_used(workload: Workload, enclave: MakeEnclave) -> None:
    with offline(3):
        first = enclave("1-2")
        with pytest.raises(GhostError, match="CPU 3 is not online"):
            enclave("3")
    second = enclave("3")
    spinner = workload.spinner(second)
    spinner.progress(100)
    assert spinner.cpus_seen == CpuSet([3])
    assert first.nr_tasks == 0


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["biff", "rr"])
def test_ten_hotplugs_under_load_lose_no_task(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    one = enclave("2-3", policy, slice="5ms")
    spinners = [workload.spinner(one) for _ in range(3)]
    sleepers = [workload.sleeper(one, then=lambda me: me.spin(0.2)) for _ in range(2)]
    try:
        for turn in range(10):
            # Every other time both, so that the enclave has no CPU.
            set_online(2, False)
            if turn % 2:
                set_online(3, False)
            for sleeper in sleepers:
                sleeper.wake()
            run(spinners, 5)
            set_online(2, True)
            for sleeper in sleepers:
                sleeper.wake()
            run(spinners, 5)
            set_online(3, True)
    finally:
        set_online(2, True)
        set_online(3, True)
    come_back(spinners, one)
    for sleeper in sleepers:
        loops = sleeper.asleep().loops
        sleeper.wake()
        until(lambda sleeper=sleeper, loops=loops: sleeper.loops > loops, "the sleeper runs")
    assert one.nr_tasks == 5
