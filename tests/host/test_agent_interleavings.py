# SPDX-License-Identifier: Apache-2.0
"""The real agents on a model of the kernel: whatever happens in whatever order, every task gets a CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from ghostbpf.schedulers.agents.task import ON_CPU, WAITING
from ghostbpf.schedulers.userspace import (
    CFS,
    EDF,
    FIFO_CENTRALIZED,
    FIFO_PER_CPU,
    SHINJUKU,
    SOL,
    AgentPolicy,
    MessageType,
    RunQueue,
    Task,
    Transaction,
    TxnState,
    spec_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_model import Broken, Build, World

POLICIES = {half.name: half for half in (CFS, EDF, FIFO_CENTRALIZED, FIFO_PER_CPU, SHINJUKU, SOL)}
CENTRAL = [name for name, half in POLICIES.items() if not half.agent.per_cpu]
#: A byte for each choice: what happens at a point, and to which task or CPU.
SCHEDULES = st.binary(min_size=160, max_size=160)
HOTPLUG = "turn turn wake wake take release preempt offline online"
TAKEOVER = "turn turn wake wake block preempt exec affinity replace depart join"


@pytest.mark.parametrize("fastpath", [0, 1], ids=["asked", "fastpath"])
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=80)
@given(schedule=SCHEDULES)
def test_every_task_gets_a_cpu_whatever_happens(name: str, fastpath: int, schedule: bytes) -> None:
    World(POLICIES[name], fastpath=fastpath).play(schedule)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=80)
@given(schedule=SCHEDULES)
def test_after_a_ring_overflows_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], ring_records=3).play(schedule)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=130)
@given(schedule=SCHEDULES)
def test_when_cpus_come_and_go_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=HOTPLUG).play(schedule)


@pytest.mark.parametrize("name", CENTRAL)
@settings(max_examples=130)
@given(schedule=SCHEDULES)
def test_when_agents_are_replaced_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=TAKEOVER).play(schedule)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60)
@given(schedule=SCHEDULES)
def test_beyond_cpu_63_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], first_cpu=63, fastpath=0).play(schedule)


#: A mend that the kernel side lacks: under which policy, among which events, and what is seen.
FAULTS = {
    "checks_each_try": (SOL, "turn wake affinity block", "where it may not run"),
    "looks_for_queue": (SOL, "turn wake affinity replace", "these get no CPU"),
    "asks_queue": (SOL, "turn turn wake wake block preempt exit", "these get no CPU"),
    "follows_exec": (SOL, "turn turn wake block preempt exec", "these get no CPU"),
    "posts_in_order": (CFS, "", "sleeps, and has been asked"),
    "words_stay": (CFS, "turn turn turn wake wake block depart join", "was told of with the sequence numbers"),
    "stock_does_not_guess": (SOL, "turn wake affinity replace", "these get no CPU"),
}


@pytest.mark.parametrize("mend", FAULTS)
def test_the_model_finds_what_was_wrong(mend: str) -> None:
    half, events, seen = FAULTS[mend]
    assert any(seen in reason for reason in _reasons(half, Build(**{mend: False}), events, 3000))


def _reasons(half: Any, build: Build, events: str, schedules: int) -> Iterator[str]:
    for seed in range(schedules):
        try:
            World(half, build, events=events).play(random.Random(seed).randbytes(160))
        except Broken as broken:
            yield str(broken)


class Recorder(AgentPolicy):
    """First come, first served, on any CPU; it notes what it is told."""

    name = "recorder"
    fastpath = False

    def __init__(self, agent: Any, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue, self.told = RunQueue(), list[str]()

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.told.append(f"{state.name} on {transaction.cpu}")
        self.queue.add_first(transaction.task)  # type: ignore[arg-type]

    def on_task_preempt(self, task: Task) -> None:
        self.told.append("preempt")
        self.enqueue(task)

    def on_affinity_changed(self, task: Task) -> None:
        self.told.append(f"may run on {task.allowed:#x}")

    def schedule(self) -> Iterator[Transaction]:
        for cpu in self.agent.idle_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu)


class Desk:
    """A world that a test drives by itself."""

    def __init__(self, **options: Any) -> None:
        self.world = World(spec_of(Recorder), **options)
        self.kernel, self.runner = self.world.kernel, self.world.runners[0]
        self.agent, self.policy = self.runner.agent, self.runner.agent.policy
        self.tasks = self.kernel.tasks

    def do(self, flow: Iterator[None]) -> None:
        for _ in flow:
            pass

    def turn(self) -> float:
        """A turn; for how long the agent sleeps then."""
        with self.world.clocked():
            self.runner.turn()
            return 0 if self.runner.is_due() else self.agent._pause()

    def tell(self, task: Any, kind: MessageType, seq: int, allowed: int) -> None:
        gtid, at, number = task.agent.gtid, self.kernel.now_ns, task.agent.word
        message = (0, gtid, task.agent.runtime_ns, at, allowed, seq, kind, 0, number, 0, 10, 100)
        self.runner.ring.records.append([message])


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """One CPU, two tasks, and the first cannot be moved, though by all that its agent knows it waits."""
    desk = Desk(cpus=1, tasks=2)
    move = desk.kernel.move

    def move_others(task: Any, *rest: Any) -> Iterator[Any]:
        if task is desk.tasks[0]:
            yield
            return False
        return (yield from move(task, *rest))

    monkeypatch.setattr(desk.kernel, "move", move_others)
    for task in desk.tasks:
        desk.do(desk.kernel.wake(task))
    return desk


def test_task_that_is_refused_again_and_again_holds_up_no_other(stuck: Desk) -> None:
    for _ in range(5):
        stuck.turn()
    assert stuck.tasks[1].queue is stuck.kernel.cpus[0].own


def test_agent_that_gets_nothing_but_refusals_tries_less_and_less_often(stuck: Desk) -> None:
    stuck.do(stuck.kernel.depart(stuck.tasks[1]))
    began, pauses = stuck.kernel.now_ns, []
    while stuck.kernel.now_ns < began + 10**9:
        pauses.append(stuck.turn())
        stuck.kernel.now_ns += max(int(pauses[-1] * 1e9), 1000)
    refusals = stuck.policy.told.count("STALE on 0")
    assert 10 < refusals < 40
    assert len(pauses) < 2 * refusals
    assert max(pauses) <= 0.064


def test_agent_that_spins_does_not_commit_a_refused_task_all_the_time(stuck: Desk) -> None:
    for _ in range(1000):
        stuck.turn()
        stuck.kernel.now_ns += 10_000
    assert len(stuck.policy.told) < 10


def test_message_ends_the_rest_of_a_refused_task(stuck: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck.do(stuck.kernel.depart(stuck.tasks[1]))
    for _ in range(20):
        stuck.turn()
        stuck.kernel.now_ns += 10**6
    monkeypatch.undo()
    stuck.do(stuck.kernel.set_weight(stuck.tasks[0], 50))
    stuck.turn()
    assert stuck.tasks[0].queue is stuck.kernel.cpus[0].own


def test_cpu_beyond_63_is_not_tried_again_once_it_is_refused() -> None:
    desk = Desk(cpus=2, tasks=1, first_cpu=64)
    desk.tasks[0].allowed = 1 << 65
    desk.do(desk.kernel.wake(desk.tasks[0]))
    desk.turn()
    desk.turn()
    assert desk.policy.told == ["INVALID_CPU on 64"]
    assert desk.tasks[0].queue is desk.kernel.cpus[65].own


def test_change_of_affinity_that_is_overtaken_is_told() -> None:
    desk = Desk(cpus=2, tasks=1)
    [task] = desk.tasks
    desk.kernel.cpu_records.raw[0].latched = desk.kernel.cpu_records.raw[1].latched = 1
    desk.do(desk.kernel.wake(task))
    desk.turn()
    # As when associate() numbers its message after the other, and posts it before.
    desk.tell(task, MessageType.TASK_NEW, 3, 0b10)
    desk.tell(task, MessageType.TASK_AFFINITY_CHANGED, 2, 0b10)
    desk.turn()
    assert desk.policy.told == ["may run on 0x2"]


def test_task_that_ran_for_no_time_at_all_waits_again() -> None:
    desk = Desk(cpus=1, tasks=1)
    [task] = desk.tasks
    desk.kernel.cpu_records.raw[0].latched = 1
    desk.do(desk.kernel.wake(task))
    desk.turn()
    known = desk.agent.tasks[task.agent.gtid]
    desk.kernel.set_state(task, ON_CPU)
    desk.policy.dequeue(known)
    assert not desk.agent.waits(known)
    desk.kernel.set_state(task, WAITING)
    desk.tell(task, MessageType.TASK_PREEMPT, 2, 1)
    desk.turn()
    assert desk.policy.told == ["preempt"]


def test_agent_that_read_a_question_in_the_turn_it_came_in_is_not_silent() -> None:
    assert not _is_silent_after_reading(Build())
    assert _is_silent_after_reading(Build(counts_questions=False))


def _is_silent_after_reading(build: Build) -> bool:
    desk = Desk(cpus=1, tasks=1, build=build, timeout_ns=50_000_000)
    flow = desk.kernel.wake(desk.tasks[0])
    read = desk.runner.channel.read

    def read_what_came_meanwhile() -> Any:
        desk.kernel.now_ns += 1000
        desk.do(flow)
        return read()

    desk.runner.channel.read = read_what_came_meanwhile
    desk.turn()
    assert not desk.runner.ring.records
    desk.kernel.now_ns += 60_000_000
    return desk.kernel.is_timed_out(0)
