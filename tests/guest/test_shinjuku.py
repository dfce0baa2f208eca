# SPDX-License-Identifier: Apache-2.0
"""Shinjuku: what is short does not wait for what is long, QoS goes first, and hints say who has work at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from agents import MakeCrew, wake_all
from ghostbpf.hints import Hints
from ghostbpf.schedulers.enclave import Enclave
from order import Order
from workload import Child, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.once]

BATCH, URGENT = 1, 2


@pytest.fixture
def one(crew: MakeCrew) -> Enclave:
    """One CPU, and slices without an end."""
    return crew("1", "shinjuku", slice="inf", agent_timeout="10s")[0]


@pytest.fixture
def hints(one: Enclave) -> Iterator[Hints]:
    with Hints.open(one.hints_path) as table:
        table.set_class(BATCH, one_shot=True, qos=1)
        table.set_class(URGENT, one_shot=True, qos=2)
        yield table


def say(me: Me) -> None:
    me.say("ran")


@pytest.mark.parametrize("slice", [pytest.param("50us", marks=pytest.mark.soak), "5ms"])
def test_short_request_runs_before_long_ones_end(workload: Workload, crew: MakeCrew, slice: str) -> None:
    one, agent = crew("1", "shinjuku", slice=slice, agent_timeout="10s")
    short = workload.sleeper(one)
    long = [workload.spinner(one) for _ in range(3)]
    for child in long:
        child.progress()
    for _ in range(20):
        loops = short.loops
        short.wake()
        until(lambda loops=loops: short.loops > loops, "the short one ran, though no other has ended")
    for child in long:
        child.progress()
    assert one.counters().preempted == 0, "it is the agent that ends slices"
    assert agent.check()


def test_who_wakes_goes_to_the_head(workload: Workload, one: Enclave) -> None:
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


def test_requests_take_cpus_from_batch_jobs(workload: Workload, crew: MakeCrew) -> None:
    """Shinjuku and Shenango: slices have no end, so only QoS can take a CPU away."""
    one, _ = crew("1-2", "shinjuku", slice="inf", agent_timeout="10s")
    with Hints.open(one.hints_path) as hints:
        hints.set_class(URGENT, one_shot=True, qos=2)
        request = workload.sleeper(one)
        hints.set_item(0, tid=request.pid, work_class=URGENT)
        batch = [workload.spinner(one, cpus=[cpu]) for cpu in one.cpus]
        for _ in range(10):
            loops = request.loops
            request.wake()
            until(lambda loops=loops: request.loops > loops, "it ran, though no batch job has ended")
            for child in batch:
                child.progress()
    assert one.counters().preempted == 0


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


def _state(enclave: Enclave, child: Child) -> str | None:
    return next((row["state"] for row in enclave.task_states() if row["tid"] == child.pid), None)
