# SPDX-License-Identifier: Apache-2.0
"""Affinity: a task runs only on CPUs of its enclave that its affinity allows."""

from __future__ import annotations

import os
import time

import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from workload import EITHER_FIFO, Child, MakeEnclave, Me, Workload, getcpu, in_ext, last_cpu, runtime_ns, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

ENDLESS = "10s"


def moved(child: Child, cpus: CpuSet) -> None:
    """Wait until ``child`` runs on one of ``cpus``, and check that it stays on them."""
    until(lambda: child.loops and child.at in cpus, f"{child} runs on CPU {cpus}")
    child.forget()
    child.progress(300)
    assert child.cpus_seen <= cpus


def woken(child: Child) -> int:
    """Wake a sleeper; returns the CPU that it ran on."""
    loops = child.loops
    child.wake()
    until(lambda: child.loops > loops, f"{child} ran")
    return child.at


@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_tasks_use_all_cpus_of_their_enclave_and_no_others(
    workload: Workload, enclave: MakeEnclave, policy: str
) -> None:
    one = enclave("1-2", policy, slice="5ms")

    def busy_and_idle(me: Me) -> None:
        while not me.stopped:
            me.spin(1)
            time.sleep(0.001)

    spinners = [workload.spinner(one) for _ in range(2)]
    others = [workload.spawn(busy_and_idle, one) for _ in range(4)]
    for child in (*spinners, *others):
        child.progress(200)
    seen = [child.cpus_seen for child in (*spinners, *others)]
    assert all(cpus <= one.cpus for cpus in seen), seen
    until(
        lambda: set().union(*(child.cpus_seen for child in (*spinners, *others))) == set(one.cpus), "every CPU is used"
    )
    assert set(one.per_cpu()) >= set(one.cpus)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_two_enclaves_keep_apart(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3", "rr")
    children = [workload.spinner(one) for one in (first, second) for _ in range(3)]
    for child in children:
        child.progress(200)
    assert [child.cpus_seen <= first.cpus for child in children] == [True] * 3 + [False] * 3
    assert [child.cpus_seen <= second.cpus for child in children] == [False] * 3 + [True] * 3


def test_new_task_starts_within_its_affinity(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")

    def fork_and_look(me: Me) -> None:
        for _ in range(20):
            if not (pid := os.fork()):
                os._exit(0 if getcpu() == 2 and in_ext(os.getpid()) else 1)
            assert os.waitpid(pid, 0)[1] == 0

    # The CPU that it may use is busy; the idle one is outside its affinity.
    hog = workload.spinner(biff, cpus=[2])
    hog.progress()
    assert workload.spawn(fork_and_look, biff, cpus=[2]).wait() == 0


@pytest.mark.kernel_independent
def test_waking_task_honours_a_mask_changed_while_it_slept(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-3")
    sleeper = workload.sleeper(biff)
    for cpu in [1, 3, 2, 3, 1, 2] * 3:
        os.sched_setaffinity(sleeper.asleep().pid, {cpu})
        assert woken(sleeper) == cpu
    os.sched_setaffinity(sleeper.asleep().pid, {0, 2, 3})
    for _ in range(10):
        assert woken(sleeper.asleep()) in (2, 3)


@pytest.mark.kernel_independent
def test_queued_task_honours_a_changed_mask(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice=ENDLESS)
    first, second = workload.spinner(biff, cpus=[1]), workload.spinner(biff, cpus=[2])
    first.progress()
    second.progress()
    queued = workload.spinner(biff, cpus=[1])
    os.sched_setaffinity(queued.pid, {2})
    queued.forget(wait=False)
    first.stop()  # which leaves a CPU idle that ``queued`` may no longer use
    used = runtime_ns(second.pid)
    until(lambda: runtime_ns(second.pid) - used > 100 * 10**6, "the second runs for 100 ms")
    second.stop()
    queued.progress(100)
    assert queued.cpus_seen == CpuSet([2])


@pytest.mark.kernel_independent
def test_running_task_moves_when_its_mask_changes(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-3")
    spinner = workload.spinner(biff)
    spinner.progress()
    for cpu in [1, 2, 3, 2, 1] * 3:
        os.sched_setaffinity(spinner.pid, {cpu})
        spinner.forget()
        assert spinner.cpus_seen == CpuSet([cpu])


def test_running_task_that_the_kernel_moves_out_comes_back(workload: Workload, enclave: MakeEnclave) -> None:
    """For a new mask without the task's CPU, the kernel picks any CPU of the mask, also outside the enclave."""
    biff = enclave("1-2")
    spinner = workload.spinner(biff)
    spinner.progress()
    for mask in [{1, 3}, {2, 3}, {0, 1}, {0, 2, 3}] * 3:
        os.sched_setaffinity(spinner.pid, mask)
        moved(spinner, CpuSet(mask) & biff.cpus)


@pytest.mark.kernel_independent
def test_task_that_binds_itself_is_there_at_once(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-3", slice="5ms")
    for _ in range(3):
        workload.spinner(biff).progress()

    def hop(me: Me) -> None:
        for turn in range(60):
            cpu = 1 + turn % 3
            os.sched_setaffinity(0, {cpu})
            assert getcpu() == cpu
            me.note()

    hoppers = [workload.spawn(hop, biff) for _ in range(3)]
    assert [child.wait() for child in hoppers] == [0] * 3


def test_task_whose_affinity_excludes_the_enclave_runs_elsewhere_until_it_changes(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1-2")
    spinner = workload.spinner(biff, cpus=[3])
    spinner.progress(200)
    assert spinner.cpus_seen == CpuSet([3])
    assert in_ext(spinner.pid)
    assert [task.tid for task in biff.tasks()] == [spinner.pid]
    assert biff.counters().affinity_misses > 0
    os.sched_setaffinity(spinner.pid, {1, 3})
    moved(spinner, CpuSet([1]))
    affinity_misses = biff.counters().affinity_misses
    spinner.progress(300)
    assert biff.counters().affinity_misses == affinity_misses


def test_waiting_and_sleeping_affinity_misses_return_when_the_affinity_changes(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1-2")
    spinners = [workload.spinner(biff, cpus=[3]) for _ in range(3)]
    sleeper = workload.sleeper(biff, cpus=[3])
    for spinner in spinners:
        spinner.progress(100)
    assert woken(sleeper) == 3
    sleeper.asleep()
    for child in (*spinners, sleeper):
        os.sched_setaffinity(child.pid, {1, 2, 3})
    for spinner in spinners:
        moved(spinner, biff.cpus)
    for _ in range(5):
        assert woken(sleeper.asleep()) in biff.cpus


@pytest.mark.kernel_independent
def test_affinity_misses_do_not_stop_their_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")
    members = [workload.spinner(biff) for _ in range(3)]
    excluded = [workload.spinner(biff, cpus=[3]) for _ in range(2)]
    for child in (*members, *excluded):
        child.progress(300)
    assert all(child.cpus_seen <= biff.cpus for child in members)
    assert all(child.cpus_seen == CpuSet([3]) for child in excluded)


def count_loops_outside(me: Me) -> None:
    """Spin; the value is the number of loops on CPU 0 or 3, which are outside the enclave."""
    times = 0
    while not me.stopped:
        me.note()
        times += getcpu() in (0, 3)
        me.set(times)


@pytest.mark.kernel_independent
@pytest.mark.parametrize("crowded", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["idle", "busy"])
def test_spinner_moves_in_soon(workload: Workload, enclave: MakeEnclave, crowded: bool) -> None:
    biff = enclave("1-2", slice="5ms")
    if crowded:
        for _ in range(3):
            workload.spinner(biff).progress()
    for _ in range(3):
        spinner = workload.spawn(count_loops_outside, cpus=[3])
        spinner.progress()
        os.sched_setaffinity(spinner.pid, {0, 1, 2, 3})
        biff.add(spinner.pid)
        since = spinner.value
        moved(spinner, biff.cpus)
        print(f"loops outside the enclave: {spinner.value - since}")
        # A few ticks. Counted in loops: the time of a virtual CPU goes on while the host runs something else.
        assert spinner.value - since < 20_000
        spinner.stop()


@pytest.mark.kernel_independent
def test_spinner_moves_from_one_enclave_to_another(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3", "rr")
    lone = workload.spinner(first)
    moved(lone, first.cpus)
    for one in (second, first, second):
        one.add(lone.pid)
        moved(lone, one.cpus)
        assert [task.tid for task in one.tasks()] == [lone.pid]
    lone.stop()
    # The same for waiting tasks: all but one are on the queue of the enclave that they leave.
    crowd = [workload.spinner(first) for _ in range(4)]
    for spinner in crowd:
        second.add(spinner.pid)
    for spinner in crowd:
        moved(spinner, second.cpus)
    assert first.nr_tasks == 0


@pytest.mark.kernel_independent
def test_sleeper_wakes_in_the_enclave_it_joined_asleep(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2")
    sleeper = workload.sleeper(cpus=[3])
    os.sched_setaffinity(sleeper.pid, {1, 2, 3})
    for one in (first, second, first):
        one.add(sleeper.asleep().pid)
        assert woken(sleeper) in one.cpus
        assert last_cpu(sleeper.pid) in one.cpus
