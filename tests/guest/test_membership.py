# SPDX-License-Identifier: Apache-2.0
"""Members of an enclave: tasks that were added, their children, and all threads of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import TaskError
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.tasks import SCHED_EXT, threads
from workload import MakeEnclave, Me, Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

KTHREADD = 2


def family(me: Me) -> None:
    """Start a thread, a child, and a grandchild that executes another program; all wait."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    if not os.fork():
        if not os.fork():
            os.execvp("sleep", ["sleep", "1000"])
        signal.pause()
    me.block()


@pytest.mark.kernel_independent
def test_children_threads_and_execed_programs_are_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    head = workload.spawn(family, biff)
    tasks = until(lambda: {t.comm: t for t in biff.tasks()}.get("sleep") and biff.tasks(), "the grandchild runs sleep")
    assert len(tasks) == 4
    assert len({task.pid for task in tasks}) == 3
    assert all(in_ext(task.tid) for task in tasks)
    assert head.pid in {task.pid for task in tasks}
    assert all(task.cpu in biff.cpus for task in tasks)


@pytest.mark.kernel_independent
def test_process_outside_stays_outside(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    inside, outside = workload.spinner(biff), workload.spawn(family)
    outside.asleep()
    inside.progress()
    assert [task.tid for task in biff.tasks()] == [inside.pid]
    assert not in_ext(outside.pid)
    assert all(task.enclave == biff.id for task in biff.core.tasks())


@pytest.mark.kernel_independent
def test_children_forked_during_a_swap_are_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2", "biff", slice="5ms")

    def breed(me: Me) -> None:
        while not me.stopped:
            if not (pid := os.fork()):
                os._exit(0 if in_ext(os.getpid()) else 1)
            assert os.waitpid(pid, 0)[1] == 0
            me.note()

    parents = [workload.spawn(breed, one) for _ in range(2)]
    for turn in range(4):
        loops = parents[0].loops
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).set_policy(POLICIES[("rr", "biff")[turn % 2]])
        until(lambda loops=loops: parents[0].loops > loops or not parents[0].alive, "the parent forks")
    heads = [workload.spawn(family, one) for _ in range(2)]
    until(lambda: sum(task.comm == "sleep" for task in one.tasks()) == 2, "both families have started")
    for parent in parents:
        parent.stop()
    assert one.nr_tasks == 4 * len(heads)
    assert one.swaps == 4


@pytest.mark.kernel_independent
def test_add_process_moves_every_thread(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    crowd = workload.crowd(200, lambda: None)
    until(lambda: crowd.value == 200, "all threads have started")
    assert biff.add_process(crowd.pid) == 201
    assert {task.tid for task in biff.tasks()} == threads(crowd.pid)
    assert biff.remove_process(crowd.pid) == 201
    assert biff.nr_tasks == 0
    crowd.wake()
    assert crowd.wait() == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_add_process_moves_threads_that_are_being_created(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    for begin in range(1, 40, 3):
        crowd = workload.crowd(60, lambda: None)
        until(lambda crowd=crowd, begin=begin: crowd.value >= begin, "some threads have started")
        biff.add_process(crowd.pid)
        until(lambda crowd=crowd: crowd.value == 60, "all threads have started")
        assert {task.tid for task in biff.tasks()} == threads(crowd.pid)
        crowd.wake()
        assert crowd.wait() == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_joining_twice_is_joining_once(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    sleeper = workload.sleeper(biff)
    biff.add(sleeper.pid)
    assert biff.add_process(sleeper.pid) == 1
    assert [task.tid for task in biff.tasks()] == [sleeper.pid]


@pytest.mark.kernel_independent
def test_task_that_ended_cannot_join(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    dead = workload.spawn(lambda me: None)
    assert dead.wait() == 0
    for join in (biff.add, biff.add_process):
        with pytest.raises(TaskError, match=f"cannot move task {dead.pid}: there is no such task"):
            join(dead.pid)
    assert biff.nr_tasks == 0


@pytest.mark.kernel_independent
def test_kernel_thread_cannot_join(enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    for join in (biff.add, biff.add_process):
        with pytest.raises(TaskError, match=f"cannot move task {KTHREADD}: it is a kernel thread"):
            join(KTHREADD)
    assert os.sched_getscheduler(KTHREADD) == os.SCHED_OTHER
    assert biff.nr_tasks == 0


@pytest.mark.kernel_independent
def test_zombie_leaves_no_task_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    if not (pid := os.fork()):
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(TaskError):
        biff.add(pid)
    os.waitpid(pid, 0)
    until(lambda: biff.nr_tasks == 0, "the zombie is gone")
    workload.spinner(biff).progress()


@pytest.mark.kernel_independent
def test_process_may_move_itself(enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(biff.cpus))
    biff.add(os.getpid())
    try:
        assert in_ext(os.getpid())
        assert [task.tid for task in biff.tasks()] == [os.getpid()]
    finally:
        biff.remove(os.getpid())
        os.sched_setaffinity(0, before)
    assert not in_ext(os.getpid())


def fork_and_show(me: Me) -> None:
    """Fork a child; the value is its pid."""
    if not (pid := os.fork()):
        signal.pause()
    me.set(pid)
    me.block()


@pytest.mark.kernel_independent
def test_child_of_a_task_that_resets_on_fork_is_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    """SCHED_RESET_ON_FORK resets the real-time classes and negative nice values (sched_fork()), not the ext class."""
    biff = enclave("1-2")
    parent = workload.spawn(fork_and_show, biff, start=False)
    os.sched_setscheduler(parent.pid, SCHED_EXT | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    parent.wake()
    child = until(lambda: parent.value, "it has a child")
    assert in_ext(child)
    assert {task.tid for task in biff.tasks()} == {parent.pid, child}


@pytest.mark.kernel_independent
def test_child_of_a_departed_task_is_outside(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    parent = workload.spawn(fork_and_show, biff, start=False)
    os.sched_setscheduler(parent.pid, os.SCHED_OTHER, os.sched_param(0))
    parent.wake()
    child = until(lambda: parent.value, "it has a child")
    assert not in_ext(child)
    # Not even if their policy is set to SCHED_EXT.
    for pid in (parent.pid, child):
        os.sched_setscheduler(pid, SCHED_EXT, os.sched_param(0))
        assert in_ext(pid)
    assert biff.nr_tasks == 0
