# SPDX-License-Identifier: Apache-2.0
"""The policies in Python schedule real tasks: every workload finishes, and each policy does what it documents."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import pytest
from agents import MakeAgentProcess, loads
from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.enclave import Enclave
from order import Order
from shares import MS, stopwatch
from workload import Child, Me, Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

KINDS = {
    "centralized": ("fifo_centralized", {}),
    "centralized, asked everything": ("fifo_centralized", {"fastpath": "off"}),
    "centralized, spinning": ("fifo_centralized", {"fastpath": "off", "spin": "yes", "agent_cpu": "1"}),
    "centralized, 5 ms slices": ("fifo_centralized", {"slice": "5ms"}),
    "per CPU": ("fifo_per_cpu", {}),
    "per CPU, stealing": ("fifo_per_cpu", {"steal": "yes"}),
    "sol": ("sol", {}),
    "sol, spinning": ("sol", {"spin": "yes"}),
    "sol, fast path": ("sol", {"fastpath": "idle"}),
    "shinjuku": ("shinjuku", {"slice": "5ms"}),
    "shinjuku, fast path": ("shinjuku", {"slice": "5ms", "fastpath": "idle"}),
    "shinjuku, spinning": ("shinjuku", {"spin": "yes"}),
    "edf": ("edf", {}),
    "edf, fast path": ("edf", {"fastpath": "idle"}),
    "cfs": ("cfs", {}),
    "cfs, fast path": ("cfs", {"fastpath": "idle"}),
}


#: Kinds that every run tests, with their marks; _SOAK is for make test-soak, all others for make test-marathon.
_MAIN: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "centralized": (),
    "centralized, asked everything": (pytest.mark.kernel_independent(on="oldest"),),
    "per CPU": (pytest.mark.kernel_independent(),),
}
_SOAK = ("sol", "shinjuku", "edf", "cfs")


def _marks(kind: str) -> tuple[pytest.MarkDecorator, ...]:
    if kind in _MAIN:
        return _MAIN[kind]
    return (pytest.mark.soak if kind in _SOAK else pytest.mark.marathon,)


@pytest.fixture(params=[pytest.param(kind, marks=_marks(kind)) for kind in KINDS])
def kind(request: pytest.FixtureRequest, agent_process: MakeAgentProcess) -> Enclave:
    policy, options = KINDS[request.param]
    return agent_process("1-3", policy, **options)[0]


def _simple() -> None:
    time.sleep(0.01)
    os.sched_yield()
    time.sleep(0.01)


def test_simple_exp(workload: Workload, kind: Enclave) -> None:
    crowd = workload.crowd(1, _simple, kind, start=True)
    until(lambda: crowd.value == 1, "the thread has started")
    crowd.wake()
    assert crowd.wait() == 0
    until(lambda: kind.nr_tasks == 0, "the enclave is empty")


@pytest.mark.marathon
def test_simple_exp_many(workload: Workload, kind: Enclave) -> None:
    crowd = _thousand(workload, _simple, kind)
    assert crowd.wait() == 0


@pytest.mark.soak
def test_busy_exp(workload: Workload, kind: Enclave) -> None:
    # Processes: with threads, Python's lock would decide which one runs.
    children = [workload.spawn(lambda me: me.spin(10), kind, start=False) for _ in range(100)]
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 100
    until(lambda: not any(loads(kind)), "no channel has a load")


@pytest.mark.marathon
def test_tasks_that_leave_by_themselves_run_on(workload: Workload, kind: Enclave) -> None:
    crowd = _thousand(workload, _leave, kind)
    assert crowd.wait() == 0


@pytest.mark.marathon
def test_tasks_that_another_process_puts_into_the_fair_class_run_on(workload: Workload, kind: Enclave) -> None:
    """The tasks run, wait or sleep, or were just taken from a queue."""

    def naps() -> None:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            time.sleep(0.001)

    crowd = _thousand(workload, naps, kind)
    threads = list(map(int, os.listdir(f"/proc/{crowd.pid}/task")))
    for tid in threads:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # the task has ended
            os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
            assert not in_ext(tid)
    assert crowd.wait() == 0
    until(lambda: kind.nr_tasks == 0, "the enclave is empty")
    until(lambda: not any(loads(kind)), "no channel has a load")
    agent = kind.agent
    assert agent is not None
    assert agent.state == "deciding"


def _thousand(workload: Workload, body: Callable[[], object], enclave: Enclave) -> Child:
    """A process whose thousand threads have started and now run ``body``."""
    crowd = workload.crowd(1000, body, enclave)
    until(lambda: crowd.value == 1000, "all threads have started")
    crowd.wake()
    return crowd


def _leave() -> None:
    assert in_ext(threading.get_native_id())
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert not in_ext(threading.get_native_id())
    _simple()


@pytest.mark.soak
def test_work_that_forks_blocks_and_spins_is_shared_by_all_cpus(workload: Workload, kind: Enclave) -> None:
    def body(me: Me) -> None:
        while not me.stopped:
            me.spin(5)
            if not (pid := os.fork()):
                me.note()  # the parents alone might be on two CPUs, where new tasks are assigned to CPUs in turn
                os._exit(0)
            os.waitpid(pid, 0)

    children = [workload.spawn(body, kind) for _ in range(8)]
    for child in children:
        child.progress(500)
    seen = set().union(*(child.cpus_seen for child in children))
    # A spinning agent moves to another CPU when a kernel thread needs its own.
    assert set(kind.cpus) - {kind.spun_cpu} <= seen <= set(kind.cpus)
    for child in children:
        child.stop()
    agent = kind.agent
    assert agent is not None
    assert agent.state == "deciding"
    assert agent.messages > 0


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    "policy", ["fifo_centralized", *(pytest.param(name, marks=pytest.mark.soak) for name in ("sol", "fifo_per_cpu"))]
)
def test_tasks_run_in_the_order_they_became_runnable(
    workload: Workload, agent_process: MakeAgentProcess, policy: str
) -> None:
    """In each of these policies, the queue is a FIFO."""
    one, _ = agent_process("1", policy, fastpath="off")
    sleepers = [workload.sleeper(one, then=lambda me: me.log("ran")) for _ in range(12)]
    holder = workload.spinner(one)
    holder.progress()
    order = Order(workload, sleepers)
    turns = [5, 0, 11, 3, 8, 1, 10, 2, 7, 4, 9, 6]
    for number in turns:
        sleepers[number].wake()
    holder.stop()
    ran = order.ran()
    assert ran == order.of(sleepers[number] for number in turns)


@pytest.mark.kernel_independent
@pytest.mark.parametrize("policy", ["fifo_centralized", pytest.param("sol", marks=pytest.mark.soak)])
def test_slice_ends_while_another_task_waits(workload: Workload, agent_process: MakeAgentProcess, policy: str) -> None:
    """The core runs an uncommitted task after 5 s; here each has many turns within one second."""
    one, _ = agent_process("1", policy, fastpath="off", slice="5ms")
    children = [workload.spinner(one) for _ in range(2)]
    for child in children:
        child.progress()
    ran, switches = stopwatch(children), one.counters().switches
    until(lambda: sum(ran()) >= 1000 * MS, "1 s of run time")
    assert min(ran()) >= 300 * MS
    assert one.counters().switches - switches >= 20


@pytest.mark.soak
@pytest.mark.parametrize("steal", ["no", "yes"])
def test_waiting_task_changes_its_cpu_only_with_steal(
    workload: Workload, agent_process: MakeAgentProcess, steal: str
) -> None:
    one, _ = agent_process("1-2", "fifo_per_cpu", steal=steal)
    children = [workload.spinner(one, start=False) for _ in range(2)]
    for child in children:
        child.wake()
    until(lambda: all(child.loops for child in children), "both run")
    assert {child.at for child in children} == {1, 2}, "new tasks are assigned to CPUs in turn"
    third = workload.sleeper()
    one.add(third.pid)
    third.wake()
    home = until(lambda: _home(one, third), "it waits for a CPU")
    hog, other = sorted(children, key=lambda child: child.at != home)
    other.kill()
    if steal == "yes":
        until(lambda: third.loops, "the other CPU's agent steals it")
        assert third.at != home
    else:
        hog.progress(10_000)
        assert not third.loops, "it waits for its own CPU"
        hog.kill()
        until(lambda: third.loops, "it runs when its CPU is free")
        assert third.at == home


def _home(enclave: Enclave, child: Child) -> int | None:
    """The CPU whose agent has ``child``; None if no CPU's agent has it."""
    agents = Agents.open(enclave.id)
    assert agents is not None
    channels = (word.channel for word in agents.status_words if word.gtid & 0xFFFFFFFF == child.pid)
    return next((channel - 1 for channel in channels if channel), None)
