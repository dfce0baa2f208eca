# SPDX-License-Identifier: Apache-2.0
"""ghOSt's edf_test and simple_edf: threads with hints all finish, and meet feasible deadlines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from agents import PATIENT, MakeAgentProcess, wake_all
from ghostbpf.hints import Hints
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.tasks import threads
from workload import Me, Workload, in_ext, until

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.shared_core,
    pytest.mark.kernel_independent,
    pytest.mark.soak,
]

DUE = 1
MS, S = 10**6, 10**9


@pytest.fixture
def one(agent_process: MakeAgentProcess) -> Enclave:
    return agent_process("1-3", "edf")[0]


@pytest.fixture
def hints(one: Enclave) -> Iterator[Hints]:
    with Hints.open(one.hints_path) as table:
        table.set_class(DUE, one_shot=True, exectime_ns=10 * MS)
        yield table


def hint(hints: Hints, tids: Iterable[int]) -> None:
    """Set a deadline of one second for each task."""
    for index, tid in enumerate(sorted(tids)):
        hints.set_item(index, tid=tid, work_class=DUE, deadline_ns=time.monotonic_ns() + S)


def simple() -> None:
    time.sleep(0.01)
    os.sched_yield()
    time.sleep(0.01)


def leave() -> None:
    assert in_ext(threading.get_native_id())
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert not in_ext(threading.get_native_id())
    simple()


@pytest.mark.parametrize("body", [simple, leave], ids=["simple", "departed"])
@pytest.mark.parametrize("count", [1, 1000])
def test_threads_with_hints_all_finish(
    workload: Workload, one: Enclave, hints: Hints, body: object, count: int
) -> None:
    for _ in range(2 if count == 1 else 1):
        crowd = workload.crowd(count, body, one)  # type: ignore[arg-type]
        until(lambda crowd=crowd: crowd.value == count, "all threads have started", 120)
        hint(hints, threads(crowd.pid))
        crowd.wake()
        assert crowd.wait(240) == 0
    until(lambda: one.nr_tasks == 0, "the enclave is empty")
    assert one.agent is not None
    assert one.agent.state != "gone"


def test_busy_run_for(workload: Workload, one: Enclave, hints: Hints) -> None:
    children = [workload.spawn(lambda me: me.spin(10), one, start=False) for _ in range(100)]
    hint(hints, (child.pid for child in children))
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 100


def test_every_deadline_of_a_feasible_set_is_met(workload: Workload, agent_process: MakeAgentProcess) -> None:
    """The tasks wake in the reverse order: a FIFO would miss the earliest deadlines."""
    one, _ = agent_process("1", "edf", **PATIENT)
    work_ms, apart_ns, slack_ns = 250, 400 * MS, S

    def work(me: Me) -> None:
        me.spin(work_ms)
        me.set(time.monotonic_ns())

    sleepers = [workload.sleeper(one, then=work) for _ in range(8)]
    with Hints.open(one.hints_path) as hints:
        hints.set_class(DUE, one_shot=True, exectime_ns=work_ms * MS)
        now = time.monotonic_ns()
        due = [now + slack_ns + (place + 1) * apart_ns for place in range(len(sleepers))]
        for index, (sleeper, deadline_ns) in enumerate(zip(sleepers, due, strict=True)):
            hints.set_item(index, tid=sleeper.pid, work_class=DUE, deadline_ns=deadline_ns)
        wake_all(one, list(reversed(sleepers)))
        until(lambda: all(sleeper.value for sleeper in sleepers), "every task has done its work")
    assert [sleeper.value <= deadline for sleeper, deadline in zip(sleepers, due, strict=True)] == [True] * 8
