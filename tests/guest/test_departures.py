# SPDX-License-Identifier: Apache-2.0
"""Leaving an enclave: whoever takes a task out of the ext class takes it out of its enclave, and it runs on."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import threading
import time

import pytest
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.tasks import SCHED_EXT
from workload import MakeEnclave, Me, Workload, in_ext, sched_field, until

pytestmark = pytest.mark.usefixtures("quiet")

ENDLESS = "10s"
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_LOCK_PI, _UNLOCK_PI = 6, 7


def depart(tid: int = 0) -> None:
    """Put a task, or the calling thread, into the fair class."""
    os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))


def test_task_that_leaves_by_itself_runs_on(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")

    def leave_and_spin(me: Me) -> None:
        assert in_ext(os.getpid())
        depart()
        assert not in_ext(os.getpid())
        while not me.stopped:
            me.note()

    child = workload.spawn(leave_and_spin, biff)
    child.progress(100)
    assert biff.nr_tasks == 0
    child.stop()


@pytest.mark.parametrize("policy", ["biff", pytest.param("rr", marks=pytest.mark.soak)])
def test_task_that_another_takes_out_runs_on(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    one = enclave("1", policy, slice=ENDLESS)
    sleeping = workload.sleeper(one)
    pair = [workload.spinner(one) for _ in range(2)]
    assert one.nr_tasks == 3
    tasks = until(lambda: [t for t in one.tasks() if t.on_cpu], "one has the CPU")
    running, queued = sorted(pair, key=lambda child: child.pid != tasks[0].tid)

    depart(sleeping.pid)
    sleeping.wake()
    until(lambda: sleeping.loops, "the sleeper runs, though the enclave's CPU is taken")
    depart(queued.pid)
    queued.progress(100)
    depart(running.pid)
    running.progress(100)
    for child in (sleeping, queued, running):
        assert not in_ext(child.pid)
        child.close()  # in the fair class, it would outrank whatever comes now
    assert one.nr_tasks == 0
    # What they left behind is an enclave that works.
    workload.spinner(one).progress(100)


def test_departed_task_may_come_back(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")
    spinner = workload.spinner(biff)
    for _ in range(10):
        spinner.progress()
        depart(spinner.pid)
        spinner.progress()
        assert biff.nr_tasks == 0
        biff.add(spinner.pid)
        assert [task.tid for task in biff.tasks()] == [spinner.pid]
    until(lambda: spinner.at == 1, "it is back")


def test_departures_disturb_no_one_else(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")
    stay = [workload.spinner(biff) for _ in range(3)]
    go = [workload.spinner(biff) for _ in range(3)]
    for turn in range(30):
        child = go[turn % 3]
        depart(child.pid)
        child.progress()
        biff.add(child.pid)
    for child in stay:
        child.progress(100)
        assert child.cpus_seen <= biff.cpus
    assert biff.nr_tasks == 6


@pytest.mark.soak
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_thousand_tasks_leave_at_once(workload: Workload, enclave: MakeEnclave, busy: bool) -> None:
    biff = enclave("1-2", slice="5ms")
    stay = [workload.spinner(biff, go=False) for _ in range(3 if busy else 0)]
    left = threading.Barrier(1001)

    def leave_and_wait() -> None:
        depart()
        assert not in_ext(threading.get_native_id())
        left.wait()
        time.sleep(0.001)

    # A child of its own, and not crowd(): its main thread tells when all the others have left.
    def lead(me: Me) -> None:
        threading.stack_size(128 * 1024)
        gate = threading.Event()
        crowd = [threading.Thread(target=lambda: (gate.wait(), leave_and_wait())) for _ in range(1000)]
        for thread in crowd:
            thread.start()
        me.set(1)
        me.block()
        gate.set()
        left.wait()
        me.set(2)
        me.block()
        for thread in crowd:
            thread.join()

    child = workload.spawn(lead, biff)
    until(lambda: child.value == 1, "all threads have started")
    assert biff.nr_tasks == 1001 + len(stay)
    for spinner in stay:
        spinner.wake()
        spinner.progress()
    child.wake()
    until(lambda: child.value == 2, "all threads have left")
    assert {task.tid for task in biff.tasks()} == {child.pid, *(spinner.pid for spinner in stay)}
    child.wake()
    assert child.wait() == 0
    for spinner in stay:
        spinner.progress(100)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(os.SCHED_FIFO, id="fifo"),
        pytest.param(os.SCHED_BATCH, id="batch", marks=pytest.mark.soak),
        pytest.param(os.SCHED_IDLE, id="idle", marks=pytest.mark.soak),
    ],
)
def test_every_other_class_is_outside(workload: Workload, enclave: MakeEnclave, policy: int) -> None:
    biff = enclave("1-2")
    sleeper = workload.sleeper(biff)
    os.sched_setscheduler(sleeper.pid, policy, os.sched_param(int(policy == os.SCHED_FIFO)))
    assert not in_ext(sleeper.pid)
    assert biff.nr_tasks == 0
    assert sched_field(sleeper.pid, "policy") == policy


def futex_pi(word: ctypes.c_uint32, operation: int) -> None:
    """Lock or unlock a futex that lends its owner the priority of whoever waits for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_FUTEX[platform.machine()], ctypes.byref(word), operation, 0, None, None, 0):
        raise OSError(ctypes.get_errno(), "futex")


@pytest.mark.skipif(platform.machine() not in _FUTEX, reason="the number of futex(2) is not known here")
def test_lent_priority_is_no_departure(workload: Workload, enclave: MakeEnclave) -> None:
    """A real-time task waits for a lock of ours: we run in its class until we let go, and then are back."""
    biff = enclave("1")
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    word = ctypes.c_uint32.from_buffer(shared)

    def own(me: Me) -> None:
        futex_pi(word, _LOCK_PI)
        me.set(1)
        me.block()
        futex_pi(word, _UNLOCK_PI)
        while not me.stopped:
            me.note()

    def want(me: Me) -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        futex_pi(word, _LOCK_PI)
        futex_pi(word, _UNLOCK_PI)

    owner = workload.spawn(own, biff)
    until(lambda: owner.value, "it has the lock")
    waiter = workload.spawn(want)
    until(lambda: sched_field(owner.pid, "prio") < 100, "it has the waiter's priority")
    assert not in_ext(owner.pid)
    assert os.sched_getscheduler(owner.pid) == SCHED_EXT
    owner.wake()
    assert waiter.wait() == 0
    owner.progress(100)
    assert in_ext(owner.pid)
    assert [task.tid for task in biff.tasks()] == [owner.pid]
    until(lambda: owner.at == 1, "it runs in its enclave")
    owner.forget()
    owner.progress(200)
    assert owner.cpus_seen <= biff.cpus


def test_slice_without_end_ends_with_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    """It may be that its loader dies then, and nobody hands the tasks back."""
    biff = enclave("1", slice=ENDLESS)
    sleeper = workload.sleeper(biff, cpus=[1])
    holder = workload.spinner(biff, cpus=[1])
    holder.progress()
    sleeper.wake()
    biff.core.enclaves[biff.id].state = constant("ENCLAVE_DYING")
    until(lambda: sleeper.loops == 1, "the sleeper ran")
    holder.progress()
