# SPDX-License-Identifier: Apache-2.0
"""The real agents on a model of the core: every task gets a CPU, whatever happens in whatever order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
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
from kernel_model import Fixes, Violation, World

POLICIES = {spec.name: spec for spec in (CFS, EDF, FIFO_CENTRALIZED, FIFO_PER_CPU, SHINJUKU, SOL)}
CENTRAL = [name for name, spec in POLICIES.items() if not spec.agent.per_cpu]
#: A byte for each choice: which event happens at a point, and to which task or CPU.
SCHEDULES = st.binary(min_size=160, max_size=160)
HOTPLUG = "turn turn wake wake take release preempt offline online"
LENDING = "turn turn wake wake lend lend reclaim block preempt yield_ affinity depart join"
CGROUPS = "turn turn turn wake wake wake cgroup cgroup block preempt yield_ affinity exit depart join offline online"
COMEBACK = "turn turn wake wake block preempt exec affinity return depart join"
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
def test_when_cpus_go_offline_and_come_back_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=HOTPLUG).play(schedule)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=100)
@given(schedule=SCHEDULES)
def test_when_tasks_have_borrowed_turns_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=LENDING).play(schedule)


@settings(max_examples=130)
@given(schedule=SCHEDULES)
def test_when_cgroups_are_weighed_every_task_gets_a_cpu(schedule: bytes) -> None:
    World(CFS, events=CGROUPS, tasks=6).play(schedule)


@pytest.mark.parametrize("name", CENTRAL)
@settings(max_examples=130)
@given(schedule=SCHEDULES)
def test_when_agents_are_replaced_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=TAKEOVER).play(schedule)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=130)
@given(schedule=SCHEDULES)
def test_when_agents_come_back_after_others_failed_every_task_gets_a_cpu(name: str, schedule: bytes) -> None:
    World(POLICIES[name], events=COMEBACK).play(schedule)


@pytest.mark.parametrize("first_cpu", [63, 126, 1021])
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30)
@given(schedule=SCHEDULES)
def test_beyond_cpu_63_every_task_gets_a_cpu(name: str, first_cpu: int, schedule: bytes) -> None:
    World(POLICIES[name], first_cpu=first_cpu, fastpath=0).play(schedule)


@pytest.mark.parametrize("cpus", [65, 128, 1024])
def test_on_many_cpus_every_task_gets_a_cpu(cpus: int) -> None:
    World(FIFO_CENTRALIZED, cpus=cpus, tasks=6, fastpath=0).play(random.Random(cpus).randbytes(160))


#: For each fix that the core may lack: the policy and the events that show the bug, and a part of the violation.
FAULTS = {
    "checks_each_try": (SOL, "turn wake affinity block", "where it may not run"),
    "looks_for_queue": (SOL, "turn wake affinity replace", "these get no CPU"),
    "asks_queue": (SOL, "turn turn wake wake block preempt exit", "these get no CPU"),
    "follows_exec": (SOL, "turn turn wake block preempt exec", "these get no CPU"),
    "posts_in_order": (CFS, "", "sleeps, and has been asked"),
    "words_stay": (CFS, "turn turn turn wake wake block depart join", "was told of with the sequence numbers"),
    "waits_for_ops": (SHINJUKU, COMEBACK, "these get no CPU"),
    "stock_does_not_guess": (SOL, "turn wake affinity replace", "these get no CPU"),
}


#: Where the search begins for a bug that one schedule in 4,000 shows.
FIRST_SEEDS = {"waits_for_ops": 8000, "asks_queue": 12000}


@pytest.mark.parametrize("fix", FAULTS)
def test_model_without_a_fix_violates_an_invariant(fix: str) -> None:
    spec, events, seen = FAULTS[fix]
    first = FIRST_SEEDS.get(fix, 0)
    assert any(seen in reason for reason in _reasons(spec, Fixes(**{fix: False}), events, range(first, first + 3000)))


def _reasons(spec: Any, fixes: Fixes, events: str, seeds: Iterable[int]) -> Iterator[str]:
    for seed in seeds:
        try:
            World(spec, fixes, events=events).play(random.Random(seed).randbytes(160))
        except Violation as violation:
            yield str(violation)


class Recorder(AgentPolicy):
    """First come, first served, on any CPU; records its callbacks."""

    name = "recorder"
    fastpath = False

    def __init__(self, agent: Any, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue, self.calls = RunQueue(), list[str]()

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.calls.append(f"{state.name} on {transaction.cpu}")
        self.queue.add_first(transaction.task)  # type: ignore[arg-type]

    def on_task_preempt(self, task: Task) -> None:
        self.calls.append("preempt")
        self.enqueue(task)

    def on_affinity_changed(self, task: Task) -> None:
        self.calls.append(f"may run on {task.allowed:#x}")

    def schedule(self) -> Iterator[Transaction]:
        for cpu in self.agent.idle_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu)


class Scenario:
    """A world whose events the test chooses one by one."""

    def __init__(self, **options: Any) -> None:
        self.world = World(spec_of(Recorder), **options)
        self.kernel, self.runner = self.world.kernel, self.world.runners[0]
        self.agent, self.policy = self.runner.agent, self.runner.agent.policy
        self.tasks = self.kernel.tasks

    def run(self, flow: Iterator[None]) -> None:
        for _ in flow:
            pass

    def turn(self) -> float:
        """Let the agent make a turn; returns for how long it would sleep then."""
        with self.world.clocked():
            self.runner.turn()
            return 0 if self.runner.is_due() else self.agent._turns.pause()

    def post(self, task: Any, kind: MessageType, seq: int, allowed: int) -> None:
        gtid, at, number = task.agent.gtid, self.kernel.now_ns, task.agent.word
        message = (0, gtid, task.agent.runtime_ns, at, allowed, seq, kind, 0, number, 0, 10, 100)
        self.runner.ring.records.append([message])


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """One CPU, two tasks, and the first cannot be moved, though its status word says that it waits."""
    scenario = Scenario(cpus=1, tasks=2)
    move = scenario.kernel.move

    def move_others(task: Any, *rest: Any) -> Iterator[Any]:
        if task is scenario.tasks[0]:
            yield
            return False
        return (yield from move(task, *rest))

    monkeypatch.setattr(scenario.kernel, "move", move_others)
    for task in scenario.tasks:
        scenario.run(scenario.kernel.wake(task))
    return scenario


def test_task_that_is_always_refused_delays_no_other(stuck: Scenario) -> None:
    for _ in range(5):
        stuck.turn()
    assert stuck.tasks[1].queue is stuck.kernel.cpus[0].own


def test_agent_that_gets_only_refusals_retries_ever_less_often(stuck: Scenario) -> None:
    stuck.run(stuck.kernel.depart(stuck.tasks[1]))
    began, pauses = stuck.kernel.now_ns, []
    while stuck.kernel.now_ns < began + 10**9:
        pauses.append(stuck.turn())
        stuck.kernel.now_ns += max(int(pauses[-1] * 1e9), 1000)
    refusals = stuck.policy.calls.count("STALE on 0")
    assert 10 < refusals < 40
    assert len(pauses) < 2 * refusals
    assert max(pauses) <= 0.064


def test_agent_that_spins_does_not_commit_a_refused_task_all_the_time(stuck: Scenario) -> None:
    for _ in range(1000):
        stuck.turn()
        stuck.kernel.now_ns += 10_000
    assert len(stuck.policy.calls) < 10


def test_message_about_a_resting_task_ends_its_rest(stuck: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck.run(stuck.kernel.depart(stuck.tasks[1]))
    for _ in range(20):
        stuck.turn()
        stuck.kernel.now_ns += 10**6
    monkeypatch.undo()
    stuck.run(stuck.kernel.set_weight(stuck.tasks[0], 50))
    stuck.turn()
    assert stuck.tasks[0].queue is stuck.kernel.cpus[0].own


@pytest.mark.parametrize("first_cpu", [64, 127, 1022])
def test_affinity_to_one_cpu_beyond_63_is_known_before_any_commit(first_cpu: int) -> None:
    scenario = Scenario(cpus=2, tasks=1, first_cpu=first_cpu)
    [task] = scenario.tasks
    task.allowed = 1 << first_cpu + 1
    scenario.run(scenario.kernel.wake(task))
    scenario.turn()
    assert scenario.policy.calls == []
    assert task.queue is scenario.kernel.cpus[first_cpu + 1].own
    scenario.run(scenario.kernel.set_affinity(task, 1 << first_cpu))
    scenario.turn()
    assert scenario.policy.calls[0] == f"may run on {1 << first_cpu:#x}"
    assert task.queue is scenario.kernel.cpus[first_cpu].own


def test_change_of_affinity_overtaken_by_another_message_reaches_the_policy() -> None:
    scenario = Scenario(cpus=2, tasks=1)
    [task] = scenario.tasks
    scenario.kernel.cpu_records.raw[0].latched = scenario.kernel.cpu_records.raw[1].latched = 1
    scenario.run(scenario.kernel.wake(task))
    scenario.turn()
    # As if associate() numbered its message after the other one, and posted it before.
    scenario.post(task, MessageType.TASK_NEW, 3, 0b10)
    scenario.post(task, MessageType.TASK_AFFINITY_CHANGED, 2, 0b10)
    scenario.turn()
    assert scenario.policy.calls == ["may run on 0x2"]


def test_task_that_ran_for_no_time_is_enqueued_again() -> None:
    scenario = Scenario(cpus=1, tasks=1)
    [task] = scenario.tasks
    scenario.kernel.cpu_records.raw[0].latched = 1
    scenario.run(scenario.kernel.wake(task))
    scenario.turn()
    known = scenario.agent.tasks[task.agent.gtid]
    scenario.kernel.set_state(task, ON_CPU)
    scenario.policy.dequeue(known)
    assert not scenario.agent.waits(known)
    scenario.kernel.set_state(task, WAITING)
    scenario.post(task, MessageType.TASK_PREEMPT, 2, 1)
    scenario.turn()
    assert scenario.policy.calls == ["preempt"]


def test_agent_that_read_a_message_in_the_turn_it_arrived_in_has_not_timed_out() -> None:
    assert not _is_timed_out_after_reading(Fixes())
    assert _is_timed_out_after_reading(Fixes(counts_questions=False))


def _is_timed_out_after_reading(fixes: Fixes) -> bool:
    scenario = Scenario(cpus=1, tasks=1, fixes=fixes, timeout_ns=50_000_000)
    flow = scenario.kernel.wake(scenario.tasks[0])
    read = scenario.runner.channel.read

    def read_after_a_wakeup() -> Any:
        scenario.kernel.now_ns += 1000
        scenario.run(flow)
        return read()

    scenario.runner.channel.read = read_after_a_wakeup
    scenario.turn()
    assert not scenario.runner.ring.records
    scenario.kernel.now_ns += 60_000_000
    return scenario.kernel.is_timed_out(0)


@pytest.mark.parametrize("listens", [False, True])
def test_agent_asks_for_each_idle_cpu_if_its_policy_has_a_callback_for_it(listens: bool) -> None:
    class Listens(FIFO_CENTRALIZED.agent):  # type: ignore[name-defined, misc]
        def on_cpu_idle(self, cpu: int) -> None: ...

    world = World(spec_of(Listens) if listens else FIFO_CENTRALIZED)
    assert world.kernel.channels.raw[0].reads_cpus == (not listens)
