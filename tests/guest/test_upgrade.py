# SPDX-License-Identifier: Apache-2.0
"""An upgrade that fails changes nothing: the current policy schedules on, with its agent."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Fifo, MakeAgentProcess
from command import Done, fork, ghostbpf, running
from ghostbpf.schedulers.agents import Agents, has_pins
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import AgentError, AgentProcess, Task, Transaction, spec_of
from workload import MakeEnclave, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

BROKEN = """
from ghostbpf.schedulers.userspace import FifoCentralized

class Broken(FifoCentralized):
    name = "broken"

    def __init__(self, agent, **options):
        raise RuntimeError("no such table")
"""

LATE = """
from ghostbpf.schedulers.userspace import FifoPerCpu

class Late(FifoPerCpu):
    name = "late"
    decided = 0

    def schedule(self):
        Late.decided += 1
        if Late.decided > 1:
            raise RuntimeError("no such table")
        return super().schedule()
"""


class Init(Fifo):
    """Raises in its constructor."""

    name = "init"

    def __init__(self, agent: object, **options: int) -> None:
        raise RuntimeError("a mistake")


class New(Fifo):
    """Raises when it gets a new task."""

    name = "new"

    def on_task_new(self, task: Task) -> None:
        raise RuntimeError("a mistake")


class Schedule(Fifo):
    """Raises when it decides."""

    name = "schedule"

    def schedule(self) -> Iterator[Transaction]:
        raise RuntimeError("a mistake")


class Nonsense(Fifo):
    """Yields an invalid transaction."""

    name = "nonsense"

    def schedule(self) -> Iterator[Transaction]:
        yield Transaction(None, "a mistake")  # type: ignore[arg-type]


class LastCpu(Fifo):
    """Raises in the constructor of one CPU's agent."""

    name = "last_cpu"
    per_cpu = True

    def __init__(self, agent: object, **options: int) -> None:
        if agent.cpu == 3:  # type: ignore[attr-defined]
            raise RuntimeError("a mistake")
        super().__init__(agent, **options)  # type: ignore[arg-type]


class Late(Fifo):
    """Decides when it is tried, and fails when it is in charge."""

    name = "late"
    decided = 0

    def schedule(self) -> Iterator[Transaction]:
        type(self).decided += 1
        if type(self).decided > 1:
            self.fail()
        return super().schedule()

    def fail(self) -> None:
        raise RuntimeError("a mistake")


class LateLastCpu(Late):
    """The agent of one CPU fails when it is in charge."""

    name = "late_last_cpu"
    per_cpu = True

    def fail(self) -> None:
        if self.agent.cpu == 3:
            super().fail()


class KilledLate(LateLastCpu):
    """The agent of one CPU is killed when it is in charge."""

    name = "killed_late"

    def fail(self) -> None:
        if self.agent.cpu == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def upgrade(enclave: Enclave, policy: type[Fifo], **options: str) -> AgentProcess:
    parsed = spec_of(policy).parse(options)
    agent_process = AgentProcess(parsed)
    try:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(enclave.id).set_policy(parsed, agent_process)
    except BaseException:
        agent_process.end()
        raise
    return agent_process


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("before", "policy"),
    [
        ("fifo_centralized", Schedule),
        *(pytest.param("fifo_centralized", policy, marks=SOAK) for policy in (Init, New, Nonsense, LastCpu)),
        *(pytest.param("fifo_per_cpu", policy, marks=SOAK) for policy in (LastCpu, Init, New, Schedule)),
    ],
)
def test_agent_that_fails_before_it_takes_over_leaves_the_current_agent_in_charge(
    workload: Workload,
    agent_process: MakeAgentProcess,
    before: str,
    policy: type[Fifo],
    capfd: pytest.CaptureFixture[str],
) -> None:
    one, agents = agent_process("1-3", before, fastpath="off", agent_timeout="10s")
    children = [workload.napper(one, busy_ms=0, nap_ms=2) for _ in range(2)]  # the agent decides at each wakeup
    for child in children:
        child.progress()
    tid = one.agent and one.agent.tid
    with pytest.raises(AgentError, match=r"a mistake|required argument"):
        upgrade(one, policy)
    assert one.agent is not None
    assert (one.policy, one.swaps, one.agent.state, one.agent.tid) == (before, 0, "deciding", tid)
    assert {path.name for path in one.path.iterdir()} == {"agent", "policy_0"}
    assert agents.check()
    committed = one.agent.committed
    until(lambda: one.agent and one.agent.committed > committed, "the agent decides")
    for child in children:
        child.progress()
    assert "RuntimeError: a mistake" in capfd.readouterr().err or policy is Nonsense


def tids(enclave: Enclave) -> list[int]:
    """Of the enclave's agent, and of the agents of its CPUs, in the initial pid namespace."""
    agents = Agents.open(enclave.id)
    assert agents is not None
    return [int(channel.tid) for channel in agents.channels]


@pytest.mark.parametrize(
    ("before", "policy", "rounds"),
    [
        pytest.param("fifo_centralized", Late, 1, marks=SOAK),
        *(pytest.param("fifo_per_cpu", policy, 2, marks=SOAK) for policy in (LateLastCpu, Late, KilledLate)),
        *(pytest.param("fifo_centralized", policy, 2, marks=SOAK) for policy in (LateLastCpu, KilledLate)),
    ],
)
@pytest.mark.timeout(900)  # an agent for each of three CPUs starts, three times
def test_agents_come_back_when_their_successor_fails_after_it_took_over(
    workload: Workload, agent_process: MakeAgentProcess, before: str, policy: type[Fifo], rounds: int
) -> None:
    one, agents = agent_process("1-3", before, fastpath="off", agent_timeout="10s")
    children = [workload.napper(one, busy_ms=0, nap_ms=2) for _ in range(4)]
    for child in children:
        child.progress()
    known = tids(one)
    for _ in range(rounds):
        with pytest.raises(AgentError, match=r"a mistake|agent of CPU 3 could not start"):
            upgrade(one, policy)
        assert one.agent is not None
        assert (one.policy, one.swaps, one.agent.state, one.agent.reason) == (before, 0, "deciding", "")
        assert {path.name for path in one.path.iterdir()} == {"agent", "policy_0"}
        assert agents.check()
        until(lambda: tids(one) == known, "every agent is the same as before")
        committed = one.agent.committed
        until(lambda committed=committed: one.agent and one.agent.committed > committed, "it decides")
        for child in children:
            child.progress()
    # One that does not fail takes over from them, and they leave.
    new = upgrade(one, Fifo)
    until(lambda: not agents.check(), "those before it have left")
    assert new.check()
    assert one.policy == Fifo.name
    new.end()


@SOAK
@pytest.mark.parametrize("policy", [Init, New])
def test_agent_that_fails_to_start_leaves_a_policy_without_agent_in_charge(
    workload: Workload, enclave: MakeEnclave, policy: type[Fifo], capfd: pytest.CaptureFixture[str]
) -> None:
    one = enclave("1", "biff", slice="5ms")
    children = [workload.spinner(one) for _ in range(3)]
    with pytest.raises(AgentError, match="RuntimeError: a mistake"):
        upgrade(one, policy)
    assert (one.policy, one.swaps, one.agent, has_pins(one.id)) == ("biff", 0, None, False)
    assert [path.name for path in one.path.iterdir()] == ["policy_0"]
    preempted = one.counters().preempted
    until(lambda: one.counters().preempted > preempted, "biff decides")
    for child in children:
        child.progress()
    assert "RuntimeError: a mistake" in capfd.readouterr().err


@pytest.mark.soak
def test_run_reports_a_policy_that_cannot_start_and_the_enclave_keeps_its_own(
    workload: Workload, agent_process: MakeAgentProcess, tmp_path: Path
) -> None:
    one, agents = agent_process("1", "fifo_centralized", agent_timeout="10s")
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    done = ghostbpf("run", file, "--enclave", one.id, "--", "sh", "-c", "echo it ran")
    assert (done.status, done.out) == (1, "")
    assert re.search(
        rf"error: the new agent of enclave {one.id} could not start: RuntimeError: no such table \(broken.py:\d+\)\n"
        rf"  try: enclave {one.id} goes on under fifo_centralized, as before\n",
        done.err,
    )
    assert agents.check()
    assert one.agent is not None
    assert (one.policy, one.agent.state) == ("fifo_centralized", "deciding")
    # In a new enclave, nothing is left.
    before = [e.id for e in Enclaves.open() or ()]
    done = ghostbpf("run", file, "--cpus", "2", "--enclave", "9", "--", "sh", "-c", "echo it ran")
    assert (done.status, done.out) == (1, "")
    assert "the agent of enclave 9 is gone: RuntimeError: no such table" in done.err
    assert [e.id for e in Enclaves.open() or ()] == before


@SOAK
def test_run_reports_a_policy_that_fails_after_it_took_over_and_the_enclave_keeps_its_own(
    workload: Workload, agent_process: MakeAgentProcess, tmp_path: Path
) -> None:
    one, agents = agent_process("1", "fifo_centralized", agent_timeout="10s")
    assert one.agent is not None
    late = tmp_path / "late.py"
    late.write_text(LATE)
    workload.spinner(one).progress()
    done = ghostbpf("run", late, "--enclave", one.id, "--", "sh", "-c", "echo it ran")
    assert (done.status, done.out) == (1, "")
    assert f"the new agent of enclave {one.id} could not start: the agent of CPU 1 could not start: " in done.err
    assert f"  try: enclave {one.id} goes on under fifo_centralized, as before\n" in done.err
    assert agents.check()
    assert (one.policy, one.agent.state) == ("fifo_centralized", "deciding")


@SOAK
@pytest.mark.parametrize("moment", ["before", "after"])
def test_loader_killed_in_an_upgrade_leaves_the_old_agent_or_the_new_one(
    workload: Workload, agent_process: MakeAgentProcess, moment: str
) -> None:
    one, agents = agent_process("1", "fifo_centralized", fastpath="off", agent_timeout="10s")
    child = workload.spinner(one)
    before = one.agent and one.agent.tid

    class Dies(AgentProcess):
        def prepare(self, enclave: Enclave, bank: int) -> None:
            super().prepare(enclave, bank)
            if moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)

        def take_over(self, enclave: Enclave) -> Dies:
            os.kill(os.getpid(), signal.SIGKILL)
            return self

    def load() -> None:
        options = POLICIES["fifo_per_cpu"].parse()
        dies = Dies(options)  # type: ignore[arg-type]
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).set_policy(options, dies)

    assert fork(load).wait().status == 137
    agent = until(lambda: (now := one.agent) and now.tid != (before if moment == "after" else 0) and now, "an agent")
    assert agent.state != "gone"
    assert one.policy == ("fifo_centralized" if moment == "before" else "fifo_per_cpu")
    assert (agent.tid == before) is (moment == "before")
    until(lambda: agents.check() is (moment == "before"), "the old agent leaves if it is replaced")
    with Enclaves.change():
        pass  # which removes what the dead loader left
    assert len([path for path in one.path.iterdir() if path.name.startswith("policy_")]) == 1
    child.progress()


@SOAK
def test_upgrade_interrupted_while_the_agent_starts_changes_nothing(
    workload: Workload, agent_process: MakeAgentProcess, tmp_path: Path
) -> None:
    one, agents = agent_process("1", "fifo_centralized", agent_timeout="10s")
    file = tmp_path / "broken.py"
    file.write_text(BROKEN.replace('raise RuntimeError("no such table")', "import time; time.sleep(1000)"))
    with running("run", file, "--enclave", one.id) as run:
        run.until(lambda: (one.path / "policy_1" / "params").exists())
        run.signal(signal.SIGINT)
        assert run.wait() == Done(130, "", "")
    assert agents.check()
    assert (one.policy, one.swaps) == ("fifo_centralized", 0)
    assert not (one.path / "policy_1").exists()
