# SPDX-License-Identifier: Apache-2.0
"""Leaving an enclave: a task that leaves the ext class leaves its enclave, and runs on."""

from __future__ import annotations

import json
import mmap
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from agents import MakeAgent, Manual, drive
from command import ghostbpf
from ghostbpf.loaders import libc
from ghostbpf.schedulers.agents.task import BLOCKED
from ghostbpf.schedulers.classes import Pusher, SchedulingClass
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.enclave_view import Departures
from ghostbpf.schedulers.tasks import SCHED_EXT
from ghostbpf.schedulers.userspace import PREEMPT, Transaction, TxnState
from workload import Child, MakeEnclave, Me, Workload, in_ext, runtime_ns, sched_field, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

ENDLESS = "10s"
_LOCK_PI, _UNLOCK_PI = 6, 7


def depart(tid: int = 0) -> None:
    """Put a task, or the calling thread, into the fair class."""
    os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.kernel_independent
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
def test_task_that_another_process_puts_into_the_fair_class_runs_on(
    workload: Workload, enclave: MakeEnclave, policy: str
) -> None:
    one = enclave("1", policy, slice=ENDLESS)
    sleeping = workload.sleeper(one)
    pair = [workload.spinner(one) for _ in range(2)]
    assert one.nr_tasks == 3
    tasks = until(lambda: [t for t in one.tasks() if t.on_cpu], "one task has the CPU")
    running, queued = sorted(pair, key=lambda child: child.pid != tasks[0].tid)

    depart(sleeping.pid)
    sleeping.wake()
    until(lambda: sleeping.loops, "the sleeper runs while the enclave's CPU is busy")
    depart(queued.pid)
    queued.progress(100)
    depart(running.pid)
    running.progress(100)
    for child in (sleeping, queued, running):
        assert not in_ext(child.pid)
        child.close()  # in the fair class, it would preempt the next spinner
    assert one.nr_tasks == 0
    # The enclave still works.
    workload.spinner(one).progress(100)


@pytest.mark.kernel_independent
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


@pytest.mark.kernel_independent
def test_departures_leave_other_tasks_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")
    stay = [workload.spinner(biff) for _ in range(3)]
    depart_and_return = [workload.spinner(biff) for _ in range(3)]
    for turn in range(30):
        child = depart_and_return[turn % 3]
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
    stay = [workload.spinner(biff, start=False) for _ in range(3 if busy else 0)]
    left = threading.Barrier(1001)

    def leave_and_wait() -> None:
        depart()
        assert not in_ext(threading.get_native_id())
        left.wait()
        time.sleep(0.001)

    # Not crowd(): this main thread shows when all other threads have left.
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
def test_task_of_any_other_class_is_not_in_the_enclave(workload: Workload, enclave: MakeEnclave, policy: int) -> None:
    biff = enclave("1-2")
    sleeper = workload.sleeper(biff)
    os.sched_setscheduler(sleeper.pid, policy, os.sched_param(int(policy == os.SCHED_FIFO)))
    assert not in_ext(sleeper.pid)
    assert biff.nr_tasks == 0
    assert sched_field(sleeper.pid, "policy") == policy


def futex_pi(word: Any, operation: int) -> None:
    """Lock or unlock a futex whose owner inherits the priority of a waiter."""
    libc.syscall("futex", word, operation, 0, libc.ffi.NULL, libc.ffi.NULL, 0)


pi_futex = pytest.mark.skipif("futex" not in libc.NUMBERS, reason="the number of futex(2) is not known here")


@pytest.mark.kernel_independent
@pi_futex
def test_priority_inheritance_is_no_departure(workload: Workload, enclave: MakeEnclave) -> None:
    """While a real-time task waits for a lock, its owner runs in the real-time class; then it returns."""
    biff = enclave("1")
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    word = libc.ffi.from_buffer("uint32_t[]", shared)

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
    until(lambda: sched_field(owner.pid, "prio") < 100, "the owner inherits the priority")
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


class Lock:
    """A lock whose owner inherits the priority of a real-time waiter.

    The owner spins, or sleeps for ``nap`` seconds a time until release(): a real-time spinner delays all other work
    on its CPU.
    """

    def __init__(self, nap: float = 0) -> None:
        self._nap = nap
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._word = libc.ffi.from_buffer("uint32_t[]", self._shared)
        self._released = self._word + 16  # in another cache line

    def own(self, me: Me) -> None:
        """Lock it, wait for release(), unlock it, and spin."""
        futex_pi(self._word, _LOCK_PI)
        me.set(1)
        while not me.stopped:
            me.note()
            if self._released[0] == 1:
                futex_pi(self._word, _UNLOCK_PI)
                self._released[0] = 2
            elif self._nap and self._released[0] == 0:
                time.sleep(self._nap)

    def want(self, _me: Me) -> None:
        """Wait for the lock in a real-time class."""
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        futex_pi(self._word, _LOCK_PI)
        futex_pi(self._word, _UNLOCK_PI)

    def release(self) -> None:
        """Tell the owner to unlock it."""
        self._released[0] = 1


def is_boosted(child: Child) -> bool:
    return sched_field(child.pid, "prio") < 100


@pytest.mark.kernel_independent
@pi_futex
def test_agent_keeps_a_task_through_priority_inheritance(workload: Workload, agent: MakeAgent) -> None:
    """For the agent the task sleeps; afterwards it has the same gtid, run time and sequence of messages."""
    one, lock = agent("1"), Lock()
    owner = workload.spawn(lock.own, one.enclave)
    drive(one, lambda: owner.value, "it has the lock")
    (task,) = one.tasks.values()
    policy, word = one.policy, one.status_words[task.word]
    assert isinstance(policy, Manual)
    policy.log.clear()
    waiter = workload.spawn(lock.want)
    until(lambda: is_boosted(owner), "the owner inherits the priority")
    # An agent that has not yet read the message may commit the task; the result must not say that it is gone. While the
    # kernel changes its class, the new priority is visible before the core is told: the task is still on its CPU.
    result = one.commit([Transaction(task, 1)])[0]
    assert result in (TxnState.ON_CPU, TxnState.STALE, TxnState.NOT_RUNNABLE)
    assert one.tasks == {task.gtid: task}
    drive(one, lambda: task.state == BLOCKED, "the agent reads that it sleeps")
    seq, ran = task.seq, one.status_words[task.word].runtime_ns
    assert policy.log[-1] == ("blocked", task)
    owner.progress(100)
    assert [t.tid for t in one.enclave.tasks()] == [owner.pid]
    lock.release()
    drive(one, lambda: not waiter.alive and in_ext(owner.pid), "it is back")
    loops = owner.loops
    drive(one, lambda: owner.loops > loops + 100, "it runs on")
    # On some kernels it runs on without waiting: the agent then reads of it when it next waits.
    assert one.commit([Transaction(None, 1, flags=PREEMPT)]) == [TxnState.COMPLETE]
    kinds: list[str] = []

    def waited() -> bool:
        kinds[:] = [kind for kind, _ in policy.log]
        return "preempt" in kinds[kinds.index("blocked") :]

    drive(one, waited, "it waits")
    assert not {"new", "departed", "dead"} & set(kinds)
    assert [(t, t.gtid) for t in one.tasks.values()] == [(task, word.gtid)]
    assert task.seq > seq
    assert one.status_words[task.word].runtime_ns >= ran


@pytest.mark.kernel_independent
@pi_futex
def test_boosted_task_whose_class_is_changed_is_dead_to_its_agent(workload: Workload, agent: MakeAgent) -> None:
    """After the boost it is in the fair class, and no op is called at its end."""
    one, lock = agent("1"), Lock()
    owner = workload.spawn(lock.own, one.enclave)
    drive(one, lambda: owner.value, "it has the lock")
    (task,) = one.tasks.values()
    waiter = workload.spawn(lock.want)
    drive(one, lambda: is_boosted(owner) and task.state == BLOCKED, "the owner inherits the priority")
    depart(owner.pid)
    lock.release()
    assert waiter.wait() == 0
    owner.progress(100)
    assert not in_ext(owner.pid)
    owner.stop()
    drive(one, lambda: not one.tasks, "the agent reads of its end")
    assert isinstance(one.policy, Manual)
    assert one.policy.log[-1] == ("dead", task)


@pytest.mark.kernel_independent
@pytest.mark.parametrize("way", [pytest.param("lent", marks=pi_futex), "left"])
def test_cfs_bpf_charges_no_run_time_from_outside_the_enclave(
    workload: Workload, enclave: MakeEnclave, way: str
) -> None:
    one, lock = enclave("1", "cfs_bpf"), Lock()
    other = workload.spinner(one, cpus=[1])
    child = workload.spawn(lock.own, one, cpus=[1])
    until(lambda: child.value, "it has the lock")
    before = runtime_ns(child.pid)
    if way == "lent":
        waiter = workload.spawn(lock.want)
    else:
        depart(child.pid)
    until(lambda: runtime_ns(child.pid) - before > 10**9, "it runs outside the enclave")
    assert not in_ext(child.pid)
    if way == "lent":
        lock.release()
        assert waiter.wait() == 0
    else:
        one.add(child.pid)
    until(lambda: in_ext(child.pid), "it is back")
    mine, others = runtime_ns(child.pid), runtime_ns(other.pid)
    until(lambda: runtime_ns(child.pid) - mine + runtime_ns(other.pid) - others > 10**9, "they run for 1 s in total")
    # Half of it is the child's; if its time outside were charged, nothing.
    assert runtime_ns(child.pid) - mine > 250 * 10**6


@pytest.mark.kernel_independent
@pi_futex
def test_destroy_hands_a_boosted_task_back(workload: Workload, enclave: MakeEnclave) -> None:
    biff, lock = enclave("1"), Lock(nap=0.001)
    keeps = enclave("2")  # and keeps the core attached
    owner = workload.spawn(lock.own, biff)
    until(lambda: owner.value, "it has the lock")
    waiter = workload.spawn(lock.want)
    until(lambda: is_boosted(owner), "the owner inherits the priority")
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(biff.id).destroy()
    lock.release()
    assert waiter.wait() == 0
    owner.progress(100)
    assert os.sched_getscheduler(owner.pid) == os.SCHED_OTHER
    assert not in_ext(owner.pid)
    # A loader has moved it out of its enclave: it is in none when it returns to the class.
    os.sched_setscheduler(owner.pid, SCHED_EXT, os.sched_param(0))
    owner.progress(100)
    assert [task.enclave for task in keeps.core.tasks()] == [0]


@pytest.mark.kernel_independent
def test_task_that_returns_to_the_class_by_itself_is_in_no_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    """The core's built-in FIFO runs it, on any CPU."""
    biff = enclave("1-2")

    def leave_and_return(me: Me) -> None:
        depart()
        os.sched_setscheduler(0, SCHED_EXT, os.sched_param(0))
        os.sched_setaffinity(0, {3})
        while not me.stopped:
            me.note()

    child = workload.spawn(leave_and_return, biff)
    child.progress(100)
    assert in_ext(child.pid)
    assert child.at == 3
    assert [(task.tid, task.enclave) for task in biff.core.tasks()] == [(child.pid, 0)]
    assert biff.departures().last == ((child.pid, Path(f"/proc/{child.pid}/comm").read_text().strip()),)
    biff.add(child.pid)
    assert [task.tid for task in biff.tasks()] == [child.pid]


@pytest.mark.kernel_independent
def test_only_tasks_that_leave_by_themselves_are_counted(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    removed, pushed, ended = (workload.sleeper(biff) for _ in range(3))
    biff.remove(removed.pid)
    assert Pusher(SchedulingClass("other")).push(pushed.pid)
    ended.kill()
    assert biff.nr_tasks == 0
    assert biff.departures() == Departures(0, ())
    # The mark of a task that a loader has removed is cleared when the task joins again.
    biff.add(removed.pid)
    depart(removed.pid)
    assert biff.departures().count == 1
    shown = json.loads(ghostbpf("enclave", "show", 1, "--json").out)["left"]
    assert (shown["count"], [task["tid"] for task in shown["last"]]) == (1, [removed.pid])
    assert f"left: 1 ({shown['last'][0]['comm']} {removed.pid})" in ghostbpf("enclave", "show", 1).out


@pytest.mark.parametrize("policy", ["biff", pytest.param("fifo_centralized", marks=pytest.mark.soak)])
def test_run_reports_at_its_end_which_tasks_left(policy: str) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do chrt --other 0 true; done"
    done = ghostbpf("run", policy, "--cpus", "1-2", "--", "sh", "-c", script)
    assert (done.status, done.out) == (0, "")
    names = r"chrt \d+, " * 8
    assert re.fullmatch(rf"9 tasks left the enclave by themselves: {names}1 before\n", done.err)


@pytest.mark.kernel_independent
def test_slice_without_end_ends_with_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    """A loader that dies then has handed no task back."""
    biff = enclave("1", slice=ENDLESS)
    sleeper = workload.sleeper(biff, cpus=[1])
    holder = workload.spinner(biff, cpus=[1])
    holder.progress()
    sleeper.wake()
    biff.core.enclaves[biff.id].state = constant("ENCLAVE_DYING")
    until(lambda: sleeper.loops == 1, "the sleeper ran")
    holder.progress()
