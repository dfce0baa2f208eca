# SPDX-License-Identifier: Apache-2.0
"""Agents that fail, stop or die: their tasks run on, the reason is shown, and a new agent takes over."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Fifo, MakeAgent, MakeAgentProcess, Manual, children_of, drive, manual
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers.agents import AgentPolicySpec, Agents
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import Agent, AgentError, AgentProcess, Task, Transaction
from workload import Child, MakeEnclave, Me, Workload, in_ext, offline, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

SOAK = pytest.mark.soak
MINUTES = [pytest.mark.marathon, pytest.mark.timeout(2400)]
MARATHON = pytest.param(100, marks=MINUTES)


def load(workload: Workload, enclave: Enclave) -> list[Child]:
    """Four tasks that block often and three that only yield: more than the enclave has CPUs."""

    def blocks(me: Me) -> None:
        while not me.stopped:
            me.spin(1)
            time.sleep(0.001)

    def yields(me: Me) -> None:
        while not me.stopped:
            me.spin(5)
            os.sched_yield()

    return [workload.spawn(body, enclave) for body in (blocks,) * 4 + (yields,) * 3]


def go_on(children: list[Child]) -> float:
    """Wait until each child has run; returns the seconds that took."""
    began = time.monotonic()
    loops = [child.loops for child in children]
    for child, before in zip(children, loops, strict=True):
        until(lambda child=child, before=before: child.loops > before, f"{child} runs")
    return time.monotonic() - began


def deciding(enclave: Enclave) -> bool:
    return enclave.agent is not None and enclave.agent.state == "deciding"


def _agents(enclave: Enclave) -> Agents:
    agents = Agents.open(enclave.id)
    assert agents is not None
    return agents


class Raises(Fifo):
    """Raises an exception when it has many tasks."""

    name = "raises"
    fastpath = False

    def schedule(self) -> Iterator[Transaction]:
        if len(self.agent.tasks) > 6:
            raise LookupError("a mistake")
        return super().schedule()


class Pauses(Fifo):
    """Stays in a turn for as long as the test sets ``is_asked``, as in a long garbage collection."""

    name = "pauses"
    fastpath = False
    #: Shared with the test process: the next turn shall pause; a turn pauses.
    is_asked, is_paused = mmap.mmap(-1, 1), mmap.mmap(-1, 1)

    def schedule(self) -> Iterator[Transaction]:
        while self.is_asked[0]:
            self.is_paused[0] = 1
            time.sleep(0.01)
        self.is_paused[0] = 0
        return super().schedule()


class Fills(Fifo):
    """Allocates memory until there is none."""

    name = "fills"
    fastpath = False

    def schedule(self) -> Iterator[Transaction]:
        if len(self.agent.tasks) > 6:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
            self.hoard = [bytearray(1 << 20) for _ in range(1000)]
        return super().schedule()


class Forgets(Fifo):
    """Never commits a task."""

    name = "forgets"
    fastpath = False

    def schedule(self) -> Iterator[Transaction]:
        return iter(())


class Favours(Fifo):
    """Commits only the first two tasks, and always one of them to each CPU."""

    name = "favours"
    fastpath = False

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.known: set[Task] = set()

    def enqueue(self, task: Task) -> None:
        if len(self.known) < 2:
            self.known.add(task)
        if task in self.known:
            super().enqueue(task)

    def schedule(self) -> Iterator[Transaction]:
        for cpu in self.agent.open_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu, 5_000_000)


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        pytest.param(Raises, "LookupError: a mistake (test_agent", marks=SOAK),
        pytest.param(Fills, "MemoryError", marks=SOAK),
    ],
)
def test_exception_in_a_policy_ends_the_agent_and_loses_no_task(
    workload: Workload, agent_process: MakeAgentProcess, policy: type[Fifo], reason: str
) -> None:
    one, failing = agent_process("1-3", policy)
    children = load(workload, one)
    until(lambda: not failing.alive, "the agent fails")
    with pytest.raises(AgentError, match=r"the agent of enclave \d+ is gone") as error:
        failing.check()
    assert reason in str(error.value)
    go_on(children)
    assert one.agent is not None
    assert (one.agent.state, reason in one.agent.reason) == ("gone", True)
    agent_process(one, "fifo_centralized")
    go_on(children)
    until(lambda: deciding(one), "the agent decides")
    assert {task.tid for task in one.tasks()} == {child.pid for child in children}


@SOAK
def test_agent_that_pauses_within_a_turn_is_timed_out_and_decides_again(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("1-3", Pauses)
    children = load(workload, one)
    go_on(children)
    for turn in range(1, 4):
        Pauses.is_asked[0] = 1
        until(lambda: Pauses.is_paused[0], "the agent pauses")
        agent = until(lambda: one.agent and one.agent.state == "timed_out" and one.agent, "the core decides")
        for _ in range(3):
            go_on(children)
        assert Pauses.is_paused[0]
        assert one.agent is not None
        assert one.agent.committed == agent.committed
        Pauses.is_asked[0] = 0
        until(lambda agent=agent: deciding(one) and one.agent.committed > agent.committed, "the agent decides again")
        go_on(children)
        assert one.agent.timeouts >= turn
    assert agents.check()


@pytest.mark.parametrize("policy", ["fifo_centralized", pytest.param("fifo_per_cpu", marks=pytest.mark.marathon)])
@SOAK
def test_stopped_agent_is_timed_out_and_decides_again_when_continued(
    workload: Workload, agent_process: MakeAgentProcess, policy: str
) -> None:
    one, stopped = agent_process("1-3", policy, fastpath="off")
    children = load(workload, one)
    go_on(children)
    agents = [stopped.pid, *children_of(stopped.pid)]
    for pid in agents:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    while time.monotonic() < began + 5:
        go_on(children)
    assert any(channel.timed_out for channel in _agents(one).channels)
    for pid in agents:
        os.kill(pid, signal.SIGCONT)
    until(lambda: deciding(one), "the agent decides again")
    go_on(children)
    assert sched_ext.status().state == "enabled"
    assert stopped.check()


@pytest.mark.kernel_independent
def test_task_without_a_cpu_gets_turns_while_the_agent_that_assigns_cpus_is_stopped(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    """That agent waits for tasks itself, for example while a CPU goes offline: the kernel then waits for RCU readers.

    The agents of CPUs interrupt what runs whenever a task yields, so a turn must not begin at that moment.
    """

    def takes_turns(me: Me) -> None:
        while not me.stopped:
            me.spin(1)
            os.sched_yield()

    one, lead = agent_process("1", "cfs", fastpath="off", agent_timeout="500ms")
    children = [workload.spawn(takes_turns, one) for _ in range(3)]
    go_on(children)
    os.kill(lead.pid, signal.SIGSTOP)
    try:
        children.append(workload.spawn(takes_turns, one))
        until(lambda: _agents(one).channels[0].timed_out, "the agent that assigns CPUs is timed out")
        before = [child.loops for child in children]

        def ran() -> list[int]:
            return [child.loops - loops for child, loops in zip(children, before, strict=True)]

        until(lambda: sum(ran()) > 5000, "the tasks run")
        assert min(ran()) > sum(ran()) / 50, ran()
    finally:
        os.kill(lead.pid, signal.SIGCONT)


@pytest.mark.kernel_independent
@pytest.mark.parametrize("rounds", [1, MARATHON])
@pytest.mark.parametrize(
    "policies",
    [
        ("fifo_centralized", "fifo_centralized"),
        pytest.param(("fifo_centralized", "fifo_per_cpu"), marks=SOAK),
        *(pytest.param((policy, policy), marks=SOAK) for policy in ("sol", "shinjuku", "edf")),
    ],
    ids="-".join,
)
def test_agent_killed_under_load_loses_no_task(
    workload: Workload, agent_process: MakeAgentProcess, policies: tuple[str, str], rounds: int
) -> None:
    one, agent = agent_process("1-3", policies[0], fastpath="off")
    children = load(workload, one)
    stalls = []
    for turn in range(rounds):
        go_on(children)
        os.kill(agent.pid, signal.SIGKILL)
        stalls.append(go_on(children))
        with pytest.raises(AgentError, match="killed by SIGKILL"):
            until(lambda agent=agent: not agent.check(), "its end is reported")
        assert {task.tid for task in one.tasks()} == {child.pid for child in children}
        _, agent = agent_process(one, policies[turn % 2], fastpath="off")
    print(f"every task ran again within {max(stalls):.3f} s")


@SOAK
def test_killed_agent_of_one_cpu_ends_the_agents_of_all(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1-3", "fifo_per_cpu")
    children = load(workload, one)
    go_on(children)
    (victim, *_) = children_of(agents.pid)
    os.kill(victim, signal.SIGKILL)
    until(lambda: not agents.alive, "the other agents leave")
    with pytest.raises(AgentError, match=f"process {victim}, ended with status -9"):
        agents.check()
    go_on(children)


def each_pair(names: list[str]) -> list[str]:
    """A closed walk that goes from each of ``names`` to each other one once."""
    walk = []
    for number, name in enumerate(names):
        walk.append(name)
        for other in names[number + 2 :]:
            walk += [other, name]
    return walk + names[-2::-1]


def each_once(names: list[str]) -> list[str]:
    """A closed walk through all of ``names``."""
    return [*names, names[0]]


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    "walk",
    [
        pytest.param(["fifo_centralized", "fifo_per_cpu", "biff"], id="some", marks=SOAK),
        pytest.param(each_once(sorted(POLICIES)), id="each", marks=SOAK),
        pytest.param(2 * each_pair(sorted(POLICIES)), id="each_pair_twice", marks=MINUTES),
    ],
)
def test_upgrades_under_load_lose_no_task(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess, walk: list[str]
) -> None:
    one = enclave("1-3", "biff")
    children = load(workload, one)
    before: AgentProcess | None = None
    for turn, policy in enumerate(walk):
        after = None
        if isinstance(POLICIES[policy], AgentPolicySpec):
            _, after = agent_process(one, policy, fastpath="off" if turn % 2 else "idle")
        else:
            with Enclaves.change() as enclaves:
                assert enclaves is not None
                enclaves.get(one.id).set_policy(POLICIES[policy])
            assert one.agent is None
        if before is not None:
            until(lambda agents=before: not agents.check(), "the old agent leaves without an error")
        before = after
        go_on(children)
        assert {task.tid for task in one.tasks()} == {child.pid for child in children}
        assert one.policy == policy


@SOAK
def test_destroying_an_enclave_ends_its_agent(workload: Workload, agent_process: MakeAgentProcess) -> None:
    for policy in ("fifo_centralized", "fifo_per_cpu"):
        one, agents = agent_process("1-3", policy, fastpath="off")
        children = load(workload, one)
        go_on(children)
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).destroy()
        until(lambda agents=agents: not agents.alive, "the agent leaves")
        assert not agents.check()
        go_on(children)
        assert not any(in_ext(child.pid) for child in children)
        for child in children:
            child.kill()


@pytest.mark.soak
def test_tasks_whose_messages_did_not_fit_into_the_ring_all_finish(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-3", ring_bytes=4096)
    manual(one)
    crowd = workload.crowd(200, lambda: None)
    until(lambda: crowd.value == 200, "all threads have started")
    one.enclave.add_process(crowd.pid)
    crowd.wake()
    policy = manual(one)

    def lost() -> bool:
        """Commit the waiting tasks, then read nothing for a while; returns whether messages were lost."""
        policy.auto = True
        one.turn()
        policy.auto = False
        time.sleep(0.05)
        return bool(one._channel.record.lost)

    until(lost, "messages are lost")
    policy.auto = True
    drive(one, lambda: not crowd.alive, "every thread ends")
    assert crowd.wait() == 0
    assert one._channel.record.resyncs > 1


@SOAK
def test_task_that_its_agent_never_commits_finishes(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1-2", Forgets)
    child = workload.spawn(lambda me: me.note(), one)
    assert child.wait() == 0
    assert agents.check()
    assert sched_ext.status().state == "enabled"


@pytest.mark.kernel_independent
def test_task_that_its_agent_never_commits_gets_a_cpu_with_a_busy_queue(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("1", Favours)
    favourites = [workload.spinner(one) for _ in range(2)]
    for favourite in favourites:
        favourite.progress()
    child = workload.spawn(lambda me: me.note(), one)
    assert child.wait() == 0
    for favourite in favourites:
        favourite.progress()
    assert agents.check()
    assert sched_ext.status().state == "enabled"


@SOAK
def test_200_tasks_never_committed_finish_before_the_kernel_ejects_the_core(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("1", Favours)
    favourites = [workload.spinner(one) for _ in range(2)]
    for favourite in favourites:
        favourite.progress()
    children = [workload.spawn(lambda me: me.note(), one, start=False) for _ in range(200)]
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * 200
    for favourite in favourites:
        favourite.progress()
    assert agents.check()
    assert sched_ext.status().state == "enabled"


@pytest.mark.parametrize("rounds", [pytest.param(15, marks=SOAK), pytest.param(1000, marks=pytest.mark.marathon)])
def test_messages_of_departing_and_returning_tasks_are_complete(
    workload: Workload, agent: MakeAgent, rounds: int
) -> None:
    one = agent("1-3")

    def body(me: Me) -> None:
        while not me.stopped:
            me.note()
            os.sched_yield()

    child = workload.spawn(body, one.enclave)
    for _ in range(rounds):
        os.sched_setscheduler(child.pid, os.SCHED_OTHER, os.sched_param(0))
        one.turn()
        one.enclave.add(child.pid)
        loops = child.loops
        drive(one, lambda loops=loops: child.loops > loops + 5, "it runs")
    assert isinstance(one.policy, Manual)
    stories: dict[Task, list[str]] = {}
    for what, task in one.policy.log:
        stories.setdefault(task, []).append(what)
    assert len(stories) > rounds / 2
    for story in stories.values():
        assert story[0] == "new"
        assert "new" not in story[1:]
        assert "departed" not in story[:-1]


@SOAK
@pytest.mark.parametrize("wants", ["a task of the enclave", "the fair class", "hotplug"])
def test_spinning_agent_moves_off_a_cpu_that_is_needed(
    workload: Workload, agent_process: MakeAgentProcess, wants: str
) -> None:
    one, agents = agent_process("1-3", "fifo_centralized", spin="yes", agent_cpu="1")
    assert os.sched_getaffinity(agents.pid) == {1}
    with contextlib.ExitStack() as plugged:
        if wants == "hotplug":
            child = workload.spinner(one)
            plugged.enter_context(offline(1))
        else:
            child = workload.spinner(one if wants == "a task of the enclave" else None, cpus=[1])
        until(lambda: os.sched_getaffinity(agents.pid) <= {2, 3}, "the agent moves to another CPU")
        assert len(os.sched_getaffinity(agents.pid)) == 1
        child.progress(100)
    assert set(one.cpus) == {1, 2, 3}
    assert agents.check()
