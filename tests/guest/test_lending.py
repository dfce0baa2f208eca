# SPDX-License-Identifier: Apache-2.0
"""Lending: a borrower's waiting tasks run on a lender's idle CPUs, and leave when the lender needs them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import pytest
from agents import PATIENT, MakeAgentProcess
from ghostbpf.schedulers.agents import AgentPolicySpec
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from shares import MS, stopwatch
from workload import Child, MakeEnclave, Workload, offline, state, until

#: Run time, in ms, to which a stop of a virtual CPU for some ms does not matter. Where it stops between two readings of
#: the clock, such as a counter's and that of the kernel's own sum, one of them has that time and the other has not.
SECOND = 1000

SOAKS = ("rr", "cfs_bpf", "fifo_centralized", "fifo_per_cpu", "cfs")

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


@pytest.fixture
def make(enclave: MakeEnclave, agent_process: MakeAgentProcess) -> Callable[..., Enclave]:
    """``make("1", "biff", borrow=True)``: an enclave, with its agent if its policy has one."""

    def one(cpus: str, policy: str = "biff", **lending: object) -> Enclave:
        if isinstance(POLICIES[policy], AgentPolicySpec):
            made = agent_process(cpus, policy, **PATIENT)[0]
        else:
            made = enclave(cpus, policy)
        if lending:
            change(made, **lending)
        return made

    return one


def change(one: Enclave, **lending: object) -> None:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(one.id).set_lending(**lending)  # type: ignore[arg-type]


def borrowed_share(borrower: Enclave, tasks: Sequence[Child], ms: float) -> Callable[[], float]:
    """Let ``tasks`` run for ``ms`` in total; returns a function for the borrowed part of the CPU time of ``tasks``."""
    before, ran = borrower.counters().borrowed_ns, stopwatch(tasks)
    until(lambda: sum(ran()) > ms * MS, f"{ms} ms of run time")
    return lambda: (borrower.counters().borrowed_ns - before) / sum(ran())


def forget(children: Sequence[Child]) -> None:
    for child in children:
        child.forget()


def stop_all(children: Sequence[Child]) -> None:
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    for child in children:
        until(lambda child=child: state(child.pid) == "T", f"{child} has stopped")


@pytest.mark.parametrize(
    "policy",
    ["biff", *(pytest.param(name, marks=pytest.mark.soak) for name in SOAKS)],
)
def test_borrower_uses_the_idle_cpus_of_a_lender_and_leaves_them(
    workload: Workload, make: Callable[..., Enclave], policy: str
) -> None:
    # What the other enclave will lend is loaded beforehand: that takes long while the tasks spin.
    lender, borrower = make("2-3", borrow=True), make("1", policy, borrow=True)
    children = [workload.spinner(borrower, cpus=cpus, start=False) for cpus in ([1], [1, 2], [1, 2, 3], [1, 2, 3])]
    bound, both, *_ = children
    clock = stopwatch(children)
    for child in children:
        child.wake()
    for child in children:
        child.progress()
        assert child.cpus_seen == CpuSet([1])
    # No enclave lends.
    assert borrowed_share(borrower, children, 30)() == 0
    assert CpuSet(cpu for child in children for cpu in child.cpus_seen) == CpuSet([1])
    assert borrower.counters().borrowed_ns == lender.counters().lent_ns == 0

    # Three CPUs' worth of time, two thirds of it borrowed. The core counts at ticks, so the share converges.
    change(lender, lend=True, borrow=False)
    share = borrowed_share(borrower, children, SECOND)
    print(policy, f"borrowed {share():.2f} of the time")
    # An agent on CPU 1 takes time of that CPU alone.
    most = 0.95 if policy in ("fifo_per_cpu", "cfs") else 0.73
    until(lambda: 0.6 < share() < most, "two thirds of the time are borrowed")
    until(lambda: {child.at for child in children} == {1, 2, 3}, "CPU 1-3 are used")
    assert (bound.cpus_seen, both.cpus_seen <= CpuSet([1, 2])) == (CpuSet([1]), True)

    # The lender takes its CPUs back.
    own = [workload.spinner(lender, start=False) for _ in range(2)]
    own_clock = stopwatch(own)
    for child in own:
        child.wake()
    until(lambda: {child.at for child in own} == {2, 3}, "the lender's tasks run on both CPUs")
    share = borrowed_share(borrower, own, SECOND)
    print(policy, f"then borrowed {share():.3f} of the lender's time")
    assert share() < 0.1
    assert lender.counters().reclaims > 0

    stop_all(children)
    stop_all(own)
    counters, lent = borrower.counters(), lender.counters()
    rows = borrower.per_cpu()
    assert counters.borrowed_ns == lent.lent_ns
    assert lent.lent_ns == pytest.approx(rows[2].runtime_ns + rows[3].runtime_ns, rel=0.03)
    assert counters.runtime_ns == pytest.approx(sum(clock()), rel=0.05)
    assert lent.runtime_ns == pytest.approx(sum(own_clock()), rel=0.05)
    assert counters.borrowings > 0
    assert (lent.borrowed_ns, counters.lent_ns, counters.affinity_misses) == (0, 0, 0)


def uses(children: Sequence[Child], cpus: str) -> None:
    """Check that ``children`` come to run on each of ``cpus`` and on no other CPU, and that each of them gets on."""
    for child in children:
        until(lambda child=child: child.at in CpuSet.parse(cpus), f"{child} runs on CPU {cpus}")
    forget(children)
    for child in children:
        child.progress(5)
    until(lambda: {child.at for child in children} == set(CpuSet.parse(cpus)), f"CPU {cpus} are used")
    assert CpuSet(cpu for child in children for cpu in child.cpus_seen) <= CpuSet.parse(cpus)


@pytest.mark.kernel_independent
def test_lender_that_loses_a_cpu_or_goes_strands_no_borrowed_task(
    workload: Workload, make: Callable[..., Enclave]
) -> None:
    lender, borrower = make("2-3", lend=True, reclaim="tick"), make("1", borrow=True)
    children = [workload.spinner(borrower) for _ in range(4)]
    uses(children, "1-3")
    with offline(3):
        uses(children, "1-2")
    own = workload.spinner(lender, cpus=[2])
    until(lambda: own.loops, "the lender's task runs")
    uses(children, "1,3")
    own.kill()
    uses(children, "1-3")
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(lender.id).destroy()
    uses(children, "1")
    assert borrower.nr_tasks == 4


@pytest.mark.soak
def test_lending_goes_on_under_another_policy_and_ends_at_once(
    workload: Workload, make: Callable[..., Enclave]
) -> None:
    lender, borrower = make("2-3", "cfs_bpf", lend=True), make("1", "cfs_bpf", borrow=True)
    children = [workload.spinner(borrower) for _ in range(4)]
    uses(children, "1-3")
    for one in (borrower, lender):
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).set_policy(POLICIES["rr"])
        uses(children, "1-3")
    change(lender, lend=False)
    uses(children, "1")
    change(lender, lend=True)
    uses(children, "1-3")
    change(borrower, borrow=False)
    uses(children, "1")
