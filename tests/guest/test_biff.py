# SPDX-License-Identifier: Apache-2.0
"""Biff: one FIFO for the enclave, and a slice that ends only while another task waits."""

from __future__ import annotations

import mmap
import os
import statistics
import time

import pytest
from agents import MakeAgentProcess
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave
from shares import stopwatch
from workload import (
    EITHER_FIFO,
    MakeEnclave,
    Me,
    Workload,
    getcpu,
    in_ext,
    runtime_ns,
    sched_field,
    until,
)

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

#: A slice longer than any test.
ENDLESS = "10s"

#: LINGER in bpf/sched.bpf.h: a waker still running that long after a sync wakeup was not about to sleep.
LINGER_NS = 1_000_000
#: AT_ONCE in bpf/sched.bpf.h: a writer that sleeps within this time leaves its CPU to the reader in any case.
AT_ONCE_NS = 50_000


class Holder:
    """A task that keeps a CPU from take() to let_go()."""

    def __init__(self, workload: Workload, enclave: Enclave) -> None:
        self._held = mmap.mmap(-1, 1)
        self._child = workload.sleeper(enclave, then=self._hold)

    def _hold(self, me: Me) -> None:
        while self._held[0]:
            me.note()

    def take(self) -> None:
        """Let it take the CPU."""
        self._held[0], loops = 1, self._child.loops
        self._child.wake()
        until(lambda: self._child.loops > loops, "the holder has the CPU")

    def let_go(self) -> None:
        """Let it leave the CPU, and wait until it sleeps."""
        self._held[0] = 0
        self._child.asleep()


def sleep_yield_sleep() -> None:
    time.sleep(0.01)
    os.sched_yield()
    time.sleep(0.01)


@pytest.mark.kernel_independent
def test_lone_thread_that_sleeps_and_yields_finds_an_idle_cpu_and_is_never_preempted(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1-2")
    rounds = 30

    def body(me: Me) -> None:
        for _ in range(rounds):
            me.block()
            me.set(me.value + in_ext(os.getpid()))
            os.sched_yield()
        me.block()

    child = workload.spawn(body, biff, start=False)
    before = sched_field(child.pid, "nr_switches")
    for _ in range(rounds + 1):
        child.asleep().wake()
    switched = sched_field(child.asleep().pid, "nr_switches") - before
    counters = biff.counters()
    assert child.value == rounds
    assert counters.switches >= switched >= rounds + 1
    # A wakeup is queued only if a higher class has a CPU of the two just then.
    assert counters.idle > rounds / 2
    assert counters.preempted == 0
    child.wake()
    assert child.wait() == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_thousand_threads_all_finish_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2")
    child = workload.crowd(1000, sleep_yield_sleep, biff)
    until(lambda: child.value == 1000, "all threads have started")
    tasks = [task for task in biff.tasks() if task.pid == child.pid]
    assert len(tasks) == 1001
    assert all(in_ext(task.tid) for task in tasks[::100])
    before = biff.counters()
    child.wake()
    assert child.wait() == 0
    after = biff.counters()
    assert after.switches - before.switches >= 3 * 1000
    assert biff.nr_tasks == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_hundred_busy_threads_all_get_their_cpu_time(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="5ms")

    def busy() -> None:
        end = time.thread_time_ns() + 10**7
        while time.thread_time_ns() < end:
            pass

    # More processes than CPUs: with threads alone, Python's lock would decide which one runs.
    children = [workload.crowd(20, busy, biff) for _ in range(5)]
    until(lambda: all(child.value == 20 for child in children), "all threads have started")
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 5
    counters = biff.counters()
    assert counters.runtime_ns >= 100 * 10**7
    assert counters.preempted > 0


@pytest.mark.kernel_independent
def test_tasks_run_in_the_order_they_became_runnable(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice=ENDLESS)
    holder = Holder(workload, biff)
    sleepers = [workload.sleeper(biff, then=lambda me: me.log("ran")) for _ in range(12)]
    orders = [list(range(12)), list(reversed(range(12))), [5, 0, 11, 3, 8, 1, 10, 2, 7, 4, 9, 6]]

    for order in orders:
        holder.take()
        for number in order:
            sleepers[number].wake()
        assert not workload.read_log()
        holder.let_go()
        assert [index for index, _ in _collect(workload, 12)] == [sleepers[number].index for number in order]


@pytest.mark.kernel_independent
def test_yield_goes_to_the_tail(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice=ENDLESS)
    holder = Holder(workload, biff)

    def thrice(me: Me) -> None:
        for turn in range(3):
            me.log(turn)
            os.sched_yield()

    sleepers = [workload.sleeper(biff, then=thrice) for _ in range(4)]

    holder.take()
    for sleeper in sleepers:
        sleeper.wake()
    assert not workload.read_log()
    holder.let_go()
    assert _collect(workload, 12) == [(sleeper.index, str(turn)) for turn in range(3) for sleeper in sleepers]


@pytest.mark.kernel_independent
def test_yield_alone_keeps_the_cpu(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1")

    def body(me: Me) -> None:
        for _ in range(1000):
            os.sched_yield()
            me.note()

    child = workload.spawn(body, biff)
    assert child.wait() == 0
    assert child.loops == 1000
    assert child.cpus_seen == biff.cpus


@pytest.mark.kernel_independent
def test_lone_spinner_is_never_preempted(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice="10ms")
    child = workload.spinner(biff)
    until(lambda: runtime_ns(child.pid) > 300 * 10**6, "30 slices of run time")
    child.stop()
    assert biff.counters().preempted == 0


@pytest.mark.kernel_independent
def test_two_spinners_take_turns_by_the_slice(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice="20ms")
    pair = [workload.spinner(biff), workload.spinner(biff)]

    for child in pair:
        child.progress()
    ran = stopwatch(pair)
    preempted = biff.counters().preempted
    until(lambda: biff.counters().preempted > preempted + 30, "30 slices are used up")
    used_up = biff.counters().preempted - preempted  # within the measured time, which begins before and ends after
    # No task is preempted before the end of its slice; how long after that depends on ticks and on the machine.
    assert sum(ran()) >= 20 * 10**6 * (used_up - 1)
    # A virtual CPU that the host preempts makes a slice longer, but makes no turns.
    turns = [int(sched_field(child.pid, "nr_involuntary_switches")) for child in pair]
    assert max(turns) < 2 * min(turns), turns
    until(lambda: min(ran()) > 0.1 * sum(ran()), "each has had its CPU time")


@pytest.mark.kernel_independent
def test_unused_slice_preempts_no_task(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1", slice=ENDLESS)
    holder = workload.spinner(biff)
    holder.progress()
    waiting = workload.spinner(biff)
    used = runtime_ns(holder.pid)
    until(lambda: runtime_ns(holder.pid) - used > 300 * 10**6, "the holder runs for 300 ms")
    assert biff.counters().preempted == 0
    holder.stop()
    waiting.progress()
    waiting.stop()


@pytest.mark.kernel_independent
def test_idle_cpu_is_used_at_once(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-2", slice=ENDLESS)
    holder = workload.spinner(biff)
    sleeper = workload.sleeper(biff)
    holder.progress()
    for _ in range(30):
        loops = sleeper.loops
        sleeper.wake()
        until(lambda loops=loops: sleeper.loops > loops, "the sleeper runs while the holder spins")
    assert biff.counters().preempted == 0
    assert biff.counters().idle > 0
    assert sleeper.cpus_seen <= biff.cpus


@pytest.mark.kernel_independent
def test_idle_cpu_runs_a_task_bound_to_it(workload: Workload, enclave: MakeEnclave) -> None:
    """The kernel calls no select_cpu() for a task with one allowed CPU: it is queued, and the CPU must be kicked."""
    biff = enclave("1-2", slice=ENDLESS)
    holder = workload.spinner(biff, cpus=[1])
    holder.progress()
    sleeper = workload.sleeper(biff, cpus=[2])
    for _ in range(30):
        loops = sleeper.loops
        sleeper.wake()
        until(lambda loops=loops: sleeper.loops > loops, "the sleeper ran on its idle CPU")
    assert sleeper.cpus_seen == CpuSet([2])


@pytest.mark.kernel_independent
def test_every_cpu_takes_from_the_one_queue(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("1-3", slice=ENDLESS)
    sleepers = [workload.sleeper(biff) for _ in range(5)]

    for cpu in biff.cpus:
        holders = {cpu: workload.spinner(biff, cpus=[cpu]) for cpu in biff.cpus}
        for holder in holders.values():
            holder.progress()
        before = [sleeper.asleep().loops for sleeper in sleepers]
        for sleeper in sleepers:
            sleeper.wake()
        holders.pop(cpu).stop()
        until(
            lambda before=before: all(s.loops > n for s, n in zip(sleepers, before, strict=True)), "every sleeper ran"
        )
        assert {sleeper.at for sleeper in sleepers} == {cpu}
        for holder in holders.values():
            holder.stop()


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    ("policy", "cpus", "share"),
    [
        ("biff", "1-3", False),
        pytest.param("biff", "1", True, marks=pytest.mark.soak),
        pytest.param("fifo_centralized", "1", True, marks=pytest.mark.soak),
        pytest.param("fifo_per_cpu", "1-3", False, marks=pytest.mark.soak),
    ],
)
def test_pair_that_wakes_each_other_shares_a_cpu_only_if_no_other_is_idle(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess, policy: str, cpus: str, share: bool
) -> None:
    """A reader gets an idle CPU; without one, a writer that sleeps soon, but not at once, leaves it its own CPU.

    An agent with the fast path gets no message of this.
    """
    if Btf.kernel().find("scx_bpf_reenqueue_local___v2", Kind.FUNC) is None:
        pytest.skip("this kernel cannot re-enqueue a task from any context: wakeups go through the queue")
    one = enclave(cpus) if policy == "biff" else agent_process(cpus, policy, fastpath="idle")[0]
    request, reply = os.pipe(), os.pipe()
    rounds = 2000

    def serve(me: Me) -> None:
        for _ in range(rounds):
            os.read(request[0], 1)
            os.write(reply[1], b"%c" % getcpu())

    def call(me: Me) -> None:
        read, write, here = os.read, os.write, getcpu
        alone, times = os.pipe(), []
        for _ in range(rounds):
            began_ns = time.perf_counter_ns()
            write(alone[1], b"!")
            read(alone[0], 1)
            times.append(time.perf_counter_ns() - began_ns)
        me.log(int(statistics.median(times)))
        together = 0
        for _ in range(rounds):
            cpu = here()
            write(request[1], b"!")
            wrote_ns = time.perf_counter_ns()
            while time.perf_counter_ns() - wrote_ns < 3 * AT_ONCE_NS:
                pass
            together += read(reply[0], 1)[0] == cpu
        me.set(together)

    pair = [workload.spawn(body, one, start=False) for body in (serve, call)]
    for child in pair:
        child.wake()
    assert [child.wait() for child in pair] == [0, 0]
    ((_, median_ns),) = workload.read_log()
    if share and int(median_ns) > LINGER_NS // 2:
        pytest.skip(f"a write and a read take {median_ns} ns: on this machine, no waker sleeps within LINGER")
    assert (pair[1].value > rounds / 2) == share
    # The caller does not sleep if the reply comes early: one wakeup a round is sure.
    assert one.counters().idle > rounds / 2
    if one.agent is not None:
        assert one.agent.messages < rounds / 2


@pytest.mark.kernel_independent(on="oldest")
@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_waker_that_does_not_sleep_keeps_its_cpu(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    """A write to a pipe is a sync wakeup. This writer runs on, so the reader must be queued."""
    one = enclave("1", policy, slice="5ms")
    heard, tell = os.pipe()

    def listen(me: Me) -> None:
        while os.read(heard, 1) != b".":
            me.note()

    listener = workload.spawn(listen, one).asleep()
    rounds = 50

    def go_on(me: Me) -> None:
        for turn in range(1, rounds + 1):
            os.write(tell, b"!")
            while listener.loops < turn:
                me.note()
            listener.asleep()
        os.write(tell, b".")

    teller = workload.spawn(go_on, one)
    assert [teller.wait(), listener.wait()] == [0, 0]
    assert one.counters().idle < rounds / 2


@pytest.mark.kernel_independent
@pytest.mark.parametrize("policy", EITHER_FIFO)
def test_task_that_exits_on_a_busy_cpu_finishes(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    """Without SCX_OPS_ENQ_EXITING, the kernel would put an exiting task on the local queue of the busy CPU."""
    one = enclave("1", policy, slice="10ms")
    workload.spinner(one).progress()

    def much_to_free(_: Me) -> None:
        memory = bytearray(64 << 20)
        memory[::4096] = b"!" * len(memory[::4096])

    children = [workload.spawn(much_to_free, one) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4


def _collect(workload: Workload, lines: int) -> list[tuple[int, str]]:
    ran: list[tuple[int, str]] = []

    def enough() -> bool:
        ran.extend(workload.read_log())
        return len(ran) >= lines

    until(enough, "all have run")
    assert len(ran) == lines
    return ran
