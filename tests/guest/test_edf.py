# SPDX-License-Identifier: Apache-2.0
"""EDF: earlier deadlines first, QoS before deadlines, and estimates of execution time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from agents import PATIENT, MakeAgent, MakeAgentProcess, drive, waiting, wake_all
from ghostbpf.hints import Hints
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.userspace.edf import Edf
from order import Order
from workload import Me, Workload, sched_field, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

NORMAL, URGENT, REPEATING = 1, 2, 3
MS, S = 10**6, 10**9


@pytest.fixture
def one(agent_process: MakeAgentProcess) -> Enclave:
    """An enclave of one CPU."""
    return agent_process("1", "edf", **PATIENT)[0]


@pytest.fixture
def hints(one: Enclave) -> Iterator[Hints]:
    with Hints.open(one.hints_path) as table:
        table.set_class(NORMAL, one_shot=True, qos=1)
        table.set_class(URGENT, one_shot=True, qos=2)
        yield table


def say(me: Me) -> None:
    me.log("ran")


def test_earlier_deadlines_go_first(workload: Workload, one: Enclave, hints: Hints) -> None:
    sleepers = [workload.sleeper(one, then=say) for _ in range(8)]
    now = time.monotonic_ns()
    by_deadline = [3, 0, 6, 1, 7, 4, 2, 5]
    for place, number in enumerate(by_deadline):
        hints.set_item(number, tid=sleepers[number].pid, work_class=NORMAL, deadline_ns=now + (10 + place) * S)
    order = Order(workload, sleepers)
    wake_all(one, sleepers)
    assert order.ran() == order.of(sleepers[number] for number in by_deadline)


@pytest.mark.soak
def test_qos_goes_before_deadline(workload: Workload, one: Enclave, hints: Hints) -> None:
    sleepers = [workload.sleeper(one, then=say) for _ in range(6)]
    now = time.monotonic_ns()
    for number, sleeper in enumerate(sleepers):
        kind = URGENT if number >= 3 else NORMAL
        hints.set_item(number, tid=sleeper.pid, work_class=kind, deadline_ns=now + (10 + number) * S)
    order = Order(workload, sleepers)
    wake_all(one, sleepers)
    assert order.ran() == order.of([*sleepers[3:], *sleepers[:3]])


@pytest.mark.soak
def test_deadline_that_changes_while_a_task_waits_counts(
    workload: Workload, agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say_and_note(me: Me) -> None:
        me.log("ran")
        me.note()

    one = agent("1", Edf)
    assert isinstance(one.policy, Edf)
    sleepers = [workload.sleeper(then=say_and_note) for _ in range(3)]
    now = time.monotonic_ns()
    with Hints.open(one.enclave.hints_path) as hints:
        hints.set_class(NORMAL, one_shot=True, qos=1)
        for number, sleeper in enumerate(sleepers):
            one.enclave.add(sleeper.pid)  # asleep, it needs no CPU to join
            hints.set_item(number, tid=sleeper.pid, work_class=NORMAL, deadline_ns=now + (20 + number) * S)
        order = Order(workload, sleepers)
        for sleeper in sleepers:
            sleeper.wake()
        until(lambda: waiting(one.enclave) == len(sleepers), "all wait")
        with monkeypatch.context() as patch:
            # No task holds the CPU: another class might preempt it, and a sleeper would run too soon.
            patch.setattr(one.policy, "_fill_idle", list)
            one.turn()
        first = one.policy.queue.first(1)
        assert first is not None
        assert first.tid == sleepers[0].pid
        hints.set_runnable(2, True, deadline_ns=now + 10 * S)
    drive(one, lambda: all(sleeper.loops for sleeper in sleepers), "all have run")
    assert order.ran() == order.of([sleepers[2], sleepers[0], sleepers[1]])


@pytest.mark.soak
def test_an_earlier_deadline_takes_no_cpu_away(workload: Workload, one: Enclave, hints: Hints) -> None:
    def hold_and_say(me: Me) -> None:
        while not me.stopped:
            me.note()
        me.log("done")
        me.block()

    def has_undisturbed_turn() -> bool:
        now = time.monotonic_ns()
        holder = workload.spawn(hold_and_say, one)
        hints.set_item(0, tid=earlier.pid, work_class=NORMAL, deadline_ns=now + 10 * S)
        hints.set_item(1, tid=holder.pid, work_class=NORMAL, deadline_ns=now + 20 * S)
        holder.progress()
        order = Order(workload, [holder, earlier])
        interruptions = sched_field(holder.pid, "nr_involuntary_switches")

        def is_disturbed() -> bool:
            return sched_field(holder.pid, "nr_involuntary_switches") != interruptions

        earlier.wake()
        until(lambda: waiting(one) == 1 or is_disturbed(), "the task with the earlier deadline waits")
        holder.stop(wait=False)
        ran = order.ran()
        if is_disturbed():
            holder.kill()
            return False
        assert ran == order.of([holder, earlier])
        return True

    earlier = workload.sleeper(one, then=say)
    until(has_undisturbed_turn, "a turn without preemption by a kernel thread")
    assert one.counters().preempted == 0


def test_higher_qos_takes_a_cpu_away(workload: Workload, one: Enclave, hints: Hints) -> None:
    urgent = workload.sleeper(one)
    now = time.monotonic_ns()
    holder = workload.spinner(one)
    hints.set_item(0, tid=urgent.pid, work_class=URGENT, deadline_ns=now + 20 * S)
    hints.set_item(1, tid=holder.pid, work_class=NORMAL, deadline_ns=now + 10 * S)
    for _ in range(5):
        holder.progress()
        loops = urgent.loops
        urgent.wake()
        until(lambda loops=loops: urgent.loops > loops, "it runs before the holder ends")
    assert one.counters().preempted == 0


@pytest.mark.soak
def test_task_whose_work_is_done_waits_for_more(workload: Workload, one: Enclave, hints: Hints) -> None:
    child = workload.spinner(one)
    hints.set_item(0, tid=child.pid, work_class=NORMAL)
    for _ in range(5):
        child.progress()
        hints.set_runnable(0, False)
        until(lambda: [row["state"] for row in one.task_states()] == ["waiting"], "it waits for work")
        hints.set_runnable(0, True)
    child.progress()


def test_simple_repeatable(workload: Workload, one: Enclave, hints: Hints) -> None:
    """Ten pieces of work of 10 ms, each after the start of its period."""
    period_ns, pieces = 50 * MS, 10
    hints.set_class(REPEATING, repeating=True, exectime_ns=10 * MS, period_ns=period_ns)

    def body(me: Me) -> None:
        with Hints.open(one.hints_path) as own:
            own.set_item(0, tid=os.getpid(), work_class=REPEATING, runnable=False)
            os.sched_yield()
            first_ns = time.monotonic_ns()
            for piece in range(1, 1 + pieces):
                me.spin(10)
                own.set_runnable(0, False)
                os.sched_yield()
                assert time.monotonic_ns() - first_ns >= (piece - 1) * period_ns
                me.set(piece)

    child = workload.spawn(body, one)
    assert child.wait() == 0
    assert child.value == pieces


@pytest.mark.soak
def test_estimate_of_a_work_class_follows_its_execution_time(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2", Edf)
    assert isinstance(one.policy, Edf)
    estimates, pieces = one.policy.estimates, 4
    with Hints.open(one.enclave.hints_path) as hints:
        hints.set_class(NORMAL, one_shot=True, exectime_ns=2 * MS)
        worker = workload.spawn(lambda me: _work(me, pieces), one.enclave)
        hints.set_item(0, tid=worker.pid, work_class=NORMAL, runnable=False)
        for piece in range(pieces):
            hints.set_runnable(0, True, deadline_ns=time.monotonic_ns() + S)
            worker.wake()
            drive(one, lambda piece=piece: worker.value > piece, "the piece is done")
            hints.set_runnable(0, False)
            drive(one, lambda: estimates[NORMAL].mean_ns > 2 * MS, "the estimate grows")
    drive(one, lambda: not worker.alive, "it ends")
    assert estimates[NORMAL].mean_ns >= (2 + pieces * 20) / (pieces + 1) * MS


def _work(me: Me, pieces: int) -> None:
    for piece in range(pieces):
        me.block()
        me.spin(20)
        me.set(piece + 1)
