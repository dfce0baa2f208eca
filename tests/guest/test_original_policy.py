# SPDX-License-Identifier: Apache-2.0
"""A task that leaves its enclave gets the policy back that it had when it joined."""

from __future__ import annotations

import os

import pytest
from command import ghostbpf, without
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.tasks import SCHED_EXT
from workload import Child, MakeEnclave, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

RESET = os.SCHED_RESET_ON_FORK
POLICIES = [
    (os.SCHED_OTHER, 0),
    (os.SCHED_OTHER | RESET, 0),
    (os.SCHED_BATCH, 0),
    (os.SCHED_BATCH | RESET, 0),
    (os.SCHED_IDLE, 0),
    (os.SCHED_FIFO, 7),
    (os.SCHED_FIFO | RESET, 7),
    (os.SCHED_RR, 1),
]


def scheduled(tid: int) -> tuple[int, int]:
    """The policy of a task, with its flag, and its priority."""
    return os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority


def sleepers(workload: Workload, body: object = None) -> list[Child]:
    """A task of each policy, each with nice 3."""
    children = []
    for policy, priority in POLICIES:
        child = workload.spawn(body, start=False) if body else workload.sleeper()  # type: ignore[arg-type]
        os.setpriority(os.PRIO_PROCESS, child.pid, 3)
        os.sched_setscheduler(child.pid, policy, os.sched_param(priority))
        children.append(child)
    return children


def destroy(enclave: Enclave) -> None:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(enclave.id).destroy()


@pytest.mark.parametrize("end", [pytest.param("rm", marks=pytest.mark.soak), "destroy"])
def test_task_that_leaves_has_its_former_policy_priority_flag_and_nice(
    workload: Workload, enclave: MakeEnclave, end: str
) -> None:
    first, last = enclave("1"), enclave("2")
    children = sleepers(workload)
    for child in children:
        first.add(child.pid)
    for child in children:
        last.add(child.pid)  # which must keep the policy from before the first
        child.wake()
        until(lambda child=child: child.loops == 1, f"{child} runs")
    assert {os.sched_getscheduler(child.pid) & ~RESET for child in children} == {SCHED_EXT}
    if end == "rm":
        for child in children:
            last.remove(child.pid)
    else:
        destroy(last)
    assert [scheduled(child.pid) for child in children] == POLICIES
    assert {os.getpriority(os.PRIO_PROCESS, child.pid) for child in children} == {3}
    assert last.not_restored == []


@pytest.mark.kernel_independent
def test_child_forked_in_the_enclave_leaves_with_the_policy_that_it_would_have_inherited(
    workload: Workload, enclave: MakeEnclave
) -> None:
    def fork(me: Me) -> None:
        if not (pid := os.fork()):
            me.block()
            os._exit(0)
        me.set(pid)
        os.waitpid(pid, 0)

    outside, inside = sleepers(workload, fork), sleepers(workload, fork)
    one = enclave("1-2")
    for child in inside:
        one.add(child.pid)
    for child in (*outside, *inside):
        child.wake()
        until(lambda child=child: child.value, f"{child} has forked")
    destroy(one)
    expected = [scheduled(child.value) for child in outside]
    assert [scheduled(child.value) for child in inside] == expected
    assert expected[5:7] == [(os.SCHED_FIFO, 7), (os.SCHED_OTHER, 0)], "RESET_ON_FORK makes no child a real-time task"


@pytest.mark.kernel_independent
def test_task_whose_policy_cannot_be_restored_is_sched_other_with_a_warning(
    workload: Workload, enclave: MakeEnclave
) -> None:
    def drop_sys_nice(me: Me) -> None:
        without("CAP_SYS_NICE")()  # a process may not change a task with more capabilities than its own
        me.note()
        me.block()

    one = enclave("1")
    child = workload.spawn(drop_sys_nice)
    until(lambda: child.loops, f"{child} runs")
    child.asleep()
    os.sched_setscheduler(child.pid, os.SCHED_RR, os.sched_param(4))
    one.add(child.pid)
    done = ghostbpf("enclave", "rm", one.id, child.pid, first=without("CAP_SYS_NICE"))
    assert (done.status, done.out) == (0, f"1 task left enclave {one.id}\n"), done.err
    assert f"warning: task {child.pid} is SCHED_OTHER now, and not rr:4 as before: not permitted" in done.err
    assert f"echo {child.pid} | sudo ghostbpf pushtosched rr:4" in done.err
    assert scheduled(child.pid) == (os.SCHED_OTHER, 0)
