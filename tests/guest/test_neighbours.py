# SPDX-License-Identifier: Apache-2.0
"""Other tasks on an enclave's CPUs: those of the fair class, which is higher, and SCHED_EXT tasks of no enclave."""

from __future__ import annotations

import operator
import os
import time

import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.tasks import SCHED_EXT
from workload import EITHER_FIFO, Child, MakeEnclave, Me, Workload, in_ext, present_cpus, runtime_ns, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent(on="oldest")]

MS = 10**6
ENDLESS = "10s"


def bound_then_free(workload: Workload, one: Enclave, cpu: int) -> Child:
    """A spinner that runs on ``cpu`` and may run on every CPU."""
    child = workload.spinner(one, cpus=[cpu])
    child.progress()
    os.sched_setaffinity(child.pid, set(present_cpus()))
    return child


def turn_ext(child: Child) -> Child:
    """Put a child into the ext class, but in no enclave."""
    os.sched_setscheduler(child.pid, SCHED_EXT, os.sched_param(0))
    assert in_ext(child.pid)
    return child


@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_task_that_a_hog_preempts_runs_elsewhere(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    one = enclave("1-2", policy)
    for _ in range(5):
        spinner = bound_then_free(workload, one, 1)
        hog = workload.spinner(cpus=[1])
        hog.progress()
        until(lambda spinner=spinner: spinner.at == 2, "it runs on the idle CPU")
        spinner.progress(100)
        hog.stop()
        spinner.stop()


def test_busy_enclave_runs_on_without_the_cpu_of_a_hog(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")
    spinners = [workload.spinner(biff) for _ in range(4)]
    sleeper = workload.sleeper(biff)
    hog = workload.spinner(cpus=[1])
    hog.progress()
    for child in spinners:
        child.forget(wait=False)
    for child in spinners:
        child.progress(100)
        assert child.cpus_seen <= biff.cpus
    for turn in range(10):
        sleeper.asleep().wake()
        until(lambda turn=turn: sleeper.loops > turn, "the sleeper runs")
    hog.stop()
    until(lambda: CpuSet(child.at for child in spinners) == biff.cpus, "the CPU is used again")


@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_task_woken_onto_a_cpu_that_a_hog_takes_runs_elsewhere(
    workload: Workload, enclave: MakeEnclave, policy: str
) -> None:
    """The fair class takes the idle CPU chosen at the wakeup before the task has run there."""
    one = enclave("1-2", policy)
    sleeper = workload.sleeper(one)

    def hog_until_stopped(me: Me) -> None:
        while not me.stopped:
            me.note()

    for _ in range(15):
        os.sched_setaffinity(sleeper.asleep().pid, {1})
        loops = sleeper.loops
        sleeper.wake()
        until(lambda loops=loops: sleeper.loops > loops, "it runs on CPU 1")
        os.sched_setaffinity(sleeper.asleep().pid, set(present_cpus()))
        hog = workload.spawn(hog_until_stopped, cpus=[1], start=False)
        loops = sleeper.loops
        sleeper.wake()
        hog.wake()
        until(lambda loops=loops: sleeper.loops > loops, "it runs while the hog has its CPU", 20)
        hog.stop()


def test_enclave_outlasts_hogs_on_all_its_cpus(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")
    spinners = [workload.spinner(biff) for _ in range(3)]
    for child in spinners:
        child.progress()
    hogs = [workload.spinner(cpus=[cpu]) for cpu in biff.cpus]
    until(lambda: all(runtime_ns(hog.pid) > 500 * MS for hog in hogs), "each hog runs for 500 ms")
    for hog in hogs:
        hog.stop()
    for child in spinners:
        child.progress(100)
        child.forget()
        child.progress(100)
        assert child.cpus_seen <= biff.cpus


def test_task_of_no_enclave_runs_on_free_cpus(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    loner = turn_ext(workload.spinner())
    loner.progress(100)
    assert biff.nr_tasks == 0
    assert not biff.counters().switches


@pytest.mark.parametrize("policy", EITHER_FIFO)
@pytest.mark.parametrize("spinners", [4, pytest.param(8, marks=pytest.mark.soak)])
def test_task_of_no_enclave_runs_although_enclaves_hold_all_cpus(
    workload: Workload, enclave: MakeEnclave, policy: str, spinners: int
) -> None:
    """With as many spinners as CPUs, no task waits on the enclave's queue, so Biff alone would preempt none."""
    one = enclave("0-3", policy, slice=ENDLESS)
    members = [workload.spinner(one) for _ in range(spinners)]
    for child in members[:4]:
        child.progress()
    loners = [turn_ext(workload.spinner(start=False)) for _ in range(2)]
    for loner in loners:
        loner.wake()
        loner.progress(1000)
    # They get a share only: the enclave runs on.
    for child in members[:4]:
        child.progress(10)
    for loner in loners:
        loner.stop()


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["biff", "cfs_bpf", "fifo_centralized", "fifo_per_cpu"])
def test_tasks_of_no_enclave_leave_the_enclave_its_share(
    workload: Workload, governed: MakeEnclave, policy: str
) -> None:
    """Tasks always wait on the fallback queue; the queue of the enclave's tasks depends on its policy."""
    one = governed("1-2", policy)
    loners = [turn_ext(workload.spinner(cpus=[1, 2], start=False)) for _ in range(4)]
    for loner in loners:
        loner.wake()
    members = [workload.spinner(one) for _ in range(4)]
    for child in members:
        child.progress(10)

    def runtimes() -> list[int]:
        return [sum(runtime_ns(child.pid) for child in children) for children in (loners, members)]

    before = runtimes()
    time.sleep(3)
    outside, inside = map(operator.sub, runtimes(), before)
    assert 0 < outside < inside


@pytest.mark.soak
def test_tasks_of_no_enclave_share_a_cpu(workload: Workload, enclave: MakeEnclave) -> None:
    """They are bound to a CPU of an enclave whose tasks may not run there."""
    biff = enclave("1-2", slice="5ms")
    members = [workload.spinner(biff, cpus=[1]) for _ in range(2)]
    for child in members:
        child.progress()

    def short(me: Me) -> None:
        while not me.stopped:
            me.spin(0.5)
            time.sleep(0.02)

    loners = [turn_ext(workload.spawn(short, cpus=[2], start=False)) for _ in range(3)]
    for loner in loners:
        loner.wake()
    for loner in loners:
        loner.progress(200)
    assert {str(loner.cpus_seen) for loner in loners} == {"2"}
    for child in members:
        child.progress(10)


def test_waiting_task_of_no_enclave_runs_when_the_cpu_idles(workload: Workload, enclave: MakeEnclave) -> None:
    """The CPU idles right after it served the fallback queue, while the enclave's queue is never empty."""
    biff = enclave("1-2", slice="5ms")
    for _ in range(2):
        workload.spinner(biff, cpus=[1]).progress()
    for _ in range(10):
        first, second = (turn_ext(workload.sleeper(cpus=[2], then=lambda me: me.spin(2))) for _ in range(2))
        first.wake()
        second.wake()
        until(lambda first=first, second=second: first.loops and second.loops, "both run", 20)
        first.asleep().close()
        second.asleep().close()
