# SPDX-License-Identifier: Apache-2.0
"""Shinjuku: short requests do not wait for long ones, higher QoS runs first, and hints tell which tasks have work."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest
from agents import PATIENT, MakeAgentProcess, wake_all
from ghostbpf.hints import Hints
from ghostbpf.schedulers.enclave import Enclave
from order import Order
from workload import Child, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

BATCH, URGENT = 1, 2


@pytest.fixture
def one(agent_process: MakeAgentProcess) -> Enclave:
    """An enclave of one CPU with endless slices."""
    return agent_process("1", "shinjuku", slice="inf", **PATIENT)[0]


@pytest.fixture
def hints(one: Enclave) -> Iterator[Hints]:
    with Hints.open(one.hints_path) as table:
        table.set_class(BATCH, one_shot=True, qos=1)
        table.set_class(URGENT, one_shot=True, qos=2)
        yield table


def say(me: Me) -> None:
    me.log("ran")


@pytest.mark.parametrize("slice", [pytest.param("50us", marks=pytest.mark.soak), "5ms"])
def test_short_request_runs_before_long_ones_end(
    workload: Workload, agent_process: MakeAgentProcess, slice: str
) -> None:
    one, agent = agent_process("1", "shinjuku", slice=slice, **PATIENT)
    short = workload.sleeper(one)
    long = [workload.spinner(one) for _ in range(3)]
    for child in long:
        child.progress()
    for _ in range(20):
        loops = short.loops
        short.wake()
        until(lambda loops=loops: short.loops > loops, "the short request runs before the long ones end")
    for child in long:
        child.progress()
    assert one.counters().preempted == 0, "the agent ends the slices"
    assert agent.check()


@pytest.mark.soak
def test_short_request_waits_for_one_slice_only(workload: Workload, agent_process: MakeAgentProcess) -> None:
    """Behind three long tasks, a FIFO would make it wait for three slices, or for ever with endless slices."""
    slice_ms = 50
    one, _ = agent_process("1", "shinjuku", slice=f"{slice_ms}ms", **PATIENT)
    short = workload.sleeper(one, then=lambda me: me.set(time.monotonic_ns()))
    for _ in range(3):
        workload.spinner(one).progress()
    waits_ms = []
    for _ in range(25):
        before, woken_ns = short.asleep().value, time.monotonic_ns()
        short.wake()
        until(lambda before=before: short.value != before, "it runs")
        waits_ms.append((short.value - woken_ns) / 1e6)
    print(f"waits: median {statistics.median(waits_ms):.1f} ms, maximum {max(waits_ms):.1f} ms")
    assert statistics.median(waits_ms) < 1.5 * slice_ms


@pytest.mark.soak
def test_woken_task_goes_to_the_head_of_the_queue(workload: Workload, one: Enclave) -> None:
    sleepers = [workload.sleeper(one, then=say) for _ in range(5)]
    order = Order(workload, sleepers)
    wake_all(one, sleepers)
    assert order.ran() == order.of(reversed(sleepers))


def test_higher_qos_goes_first(workload: Workload, one: Enclave, hints: Hints) -> None:
    sleepers = [workload.sleeper(one, then=say) for _ in range(6)]
    for index, sleeper in enumerate(sleepers):
        hints.set_item(index, tid=sleeper.pid, work_class=BATCH if index % 2 else URGENT)
    order = Order(workload, sleepers)
    wake_all(one, sleepers)
    urgent, batch = sleepers[::2], sleepers[1::2]
    assert order.ran() == order.of([*reversed(urgent), *reversed(batch)])


def test_requests_take_cpus_from_batch_jobs(workload: Workload, agent_process: MakeAgentProcess) -> None:
    """Shinjuku and Shenango: with endless slices, only QoS preempts."""
    one, _ = agent_process("1-2", "shinjuku", slice="inf", **PATIENT)
    with Hints.open(one.hints_path) as hints:
        hints.set_class(URGENT, one_shot=True, qos=2)
        request = workload.sleeper(one)
        hints.set_item(0, tid=request.pid, work_class=URGENT)
        batch = [workload.spinner(one, cpus=[cpu]) for cpu in one.cpus]
        for _ in range(10):
            loops = request.loops
            request.wake()
            until(lambda loops=loops: request.loops > loops, "it runs before a batch job ends")
            for child in batch:
                child.progress()
    assert one.counters().preempted == 0


@pytest.mark.soak
def test_request_takes_an_idle_cpu_rather_than_one_of_a_batch_job(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    """Not always: the other CPU is not idle while a higher class, such as an agent, has it."""
    one, _ = agent_process("1-2", "shinjuku", slice="inf", agent_cpu="0", **PATIENT)
    with Hints.open(one.hints_path) as hints:
        hints.set_class(URGENT, one_shot=True, qos=2)
        request = workload.sleeper(one)
        hints.set_item(0, tid=request.pid, work_class=URGENT)
        batch = workload.spinner(one, cpus=[1])
        batch.progress()
        places = []
        for _ in range(10):
            loops = request.loops
            request.asleep().wake()
            until(lambda loops=loops: request.loops > loops, "it runs")
            places.append(request.at)
        assert places.count(2) >= 8


@pytest.mark.soak
def test_running_task_that_begins_another_request_gives_its_cpu_to_a_waiting_task(
    workload: Workload, one: Enclave, hints: Hints
) -> None:
    """Slices are endless here. A request that changes while no task waits preempts nothing."""
    holder, other = (workload.spinner(one, start=False) for _ in range(2))
    for index, child in enumerate((holder, other)):
        hints.set_item(index, tid=child.pid, work_class=BATCH)
    holder.wake()
    holder.progress()
    hints.set_item(0, tid=holder.pid, work_class=BATCH, deadline_ns=1)
    holder.progress(50)
    other.wake()
    until(lambda: _state(one, other) == "waiting", "it waits")
    holder.progress(50)
    assert not other.loops
    hints.set_item(0, tid=holder.pid, work_class=BATCH, deadline_ns=2)
    until(lambda: other.loops, "it gets the CPU before the core runs uncommitted tasks, after 5 s", 3)


@pytest.mark.soak
def test_task_whose_work_is_done_leaves_its_cpu(workload: Workload, one: Enclave, hints: Hints) -> None:
    child = workload.spinner(one)
    hints.set_item(0, tid=child.pid, work_class=BATCH)
    for _ in range(5):
        child.progress()
        hints.set_runnable(0, False)
        until(lambda: _state(one, child) == "waiting", "it waits for work")
        hints.set_runnable(0, True)
    child.progress()
    assert one.counters().preempted == 0


def test_repeating_work_comes_once_a_period(workload: Workload, one: Enclave) -> None:
    period_ns, pieces = 50_000_000, 6
    with Hints.open(one.hints_path) as hints:
        hints.set_class(0, repeating=True, period_ns=period_ns)

    def body(me: Me) -> None:
        with Hints.open(one.hints_path) as hints:
            hints.set_item(0, tid=os.getpid())
            for _ in range(pieces):
                me.spin(1)
                done_ns = time.monotonic_ns()
                hints.set_runnable(0, False)
                os.sched_yield()
                assert time.monotonic_ns() - done_ns >= period_ns

    child = workload.spawn(body, one)
    assert child.wait() == 0


@pytest.mark.soak
def test_long_request_runs_although_others_wake_all_the_time(workload: Workload, one: Enclave) -> None:
    """The core itself would run it only after five seconds."""

    def nap(me: Me) -> None:
        while not me.stopped:
            time.sleep(0.001)

    def yield_often(me: Me) -> None:
        longest_ns = 0
        for _ in range(5):
            began_ns = time.monotonic_ns()
            os.sched_yield()
            longest_ns = max(longest_ns, time.monotonic_ns() - began_ns)
        me.set(longest_ns)

    children = [workload.spawn(body, one, start=False) for body in [nap] * 40 + [yield_often]]
    for child in children:
        child.wake()
    long = children[-1]
    assert long.wait() == 0
    print(f"longest wait: {long.value / 1e9:.2f} s")
    assert 0.9e9 < long.value < 4e9, "it waits for the policy's limit of 1 s, not for the core's of 5 s"


def _state(enclave: Enclave, child: Child) -> str | None:
    return next((row["state"] for row in enclave.task_states() if row["tid"] == child.pid), None)
