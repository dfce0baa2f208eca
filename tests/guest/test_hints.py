# SPDX-License-Identifier: Apache-2.0
"""Hints reach an agent, the agent that replaces it, and a policy in BPF."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from agents import PATIENT, MakeAgentProcess, wake_all
from command import Done, ghostbpf, nobody, running
from ghostbpf.hints import Hints
from ghostbpf.loaders import BpfError, Hash, Map, abi
from ghostbpf.loaders.descriptors import DescriptorError
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES, from_file
from ghostbpf.schedulers.userspace import Agent, AgentPolicy
from order import Order
from workload import DEADLINE, Child, MakeEnclave, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

SOAK = pytest.mark.soak


DOCUMENT = Path(__file__).parents[2] / "docs" / "hints.md"


def code_block(language: str, number: int) -> str:
    """Fenced block ``number`` of a language in docs/hints.md."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)[number]


@pytest.fixture(scope="module")
def earliest(tmp_path_factory: pytest.TempPathFactory) -> type[AgentPolicy]:
    """The policy that the document shows: the task with the earliest deadline runs first."""
    file = tmp_path_factory.mktemp("policy") / "earliest.py"
    file.write_text(code_block("python", 1))
    policy: type[AgentPolicy] = from_file(str(file)).agent
    return policy


class Applications:
    """Applications that wait for one CPU: processes, each of which writes its own item."""

    def __init__(self, workload: Workload, enclave: Enclave, deadlines: list[int]) -> None:
        self._workload, self._enclave = workload, enclave
        self.sleepers = [self._join(index, deadline) for index, deadline in enumerate(deadlines, 1)]

    def _join(self, item: int, deadline_ns: int) -> Child:
        def body(me: Me) -> None:
            with Hints.open(self._enclave.hints_path) as hints:
                hints.set_item(item, tid=os.getpid(), deadline_ns=deadline_ns)
            while not me.stopped:
                me.block()
                me.log("ran")

        return self._workload.spawn(body, self._enclave).asleep()

    def expect(self, *places: int) -> None:
        """Wake all at once, and check that they run in the order of these indexes of ``sleepers``."""
        order = Order(self._workload, self.sleepers)
        wake_all(self._enclave, self.sleepers)
        assert order.ran() == order.of(self.sleepers[place] for place in places)


def test_agent_schedules_by_the_deadlines_that_applications_set_also_after_a_resize(
    workload: Workload, agent_process: MakeAgentProcess, earliest: type[AgentPolicy]
) -> None:
    one, _ = agent_process("1", earliest, **PATIENT)
    applications = Applications(workload, one, [40, 20, 30, 10])
    applications.expect(3, 1, 2, 0)
    with Hints.open(one.hints_path) as hints:
        hints.set_item(2, tid=applications.sleepers[1].pid, deadline_ns=50, take=True)
        applications.expect(3, 2, 0, 1)
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            one.resize(CpuSet([2]))
        applications.expect(3, 2, 0, 1)
        hints.set_item(2, tid=applications.sleepers[1].pid, deadline_ns=5)
        applications.expect(1, 3, 2, 0)


@SOAK
def test_next_agent_knows_the_hints_given_to_a_killed_agent(
    workload: Workload, agent_process: MakeAgentProcess, earliest: type[AgentPolicy]
) -> None:
    one, agent = agent_process("1", earliest, **PATIENT)
    applications = Applications(workload, one, [40, 20, 30, 10])
    os.kill(agent.pid, signal.SIGKILL)
    until(lambda: one.agent and one.agent.state == "gone", "the agent is gone")
    agent_process(one, earliest, **PATIENT)
    applications.expect(3, 1, 2, 0)


@pytest.mark.soak
def test_table_stays_as_long_as_the_enclave(
    enclave: MakeEnclave, agent_process: MakeAgentProcess, earliest: type[AgentPolicy]
) -> None:
    e = enclave("1")
    assert not e.hints_path.exists()
    agent_process(e, earliest)
    with Hints.open(e.hints_path) as hints:
        hints.set_item(3, tid=1)
    assert e.hints_path.stat().st_mode & 0o777 == 0o600
    e.set_policy(POLICIES["biff"])
    agent_process(e, earliest)
    with Hints.open(e.hints_path) as hints:
        assert [index for index, _ in hints.updates()] == [3]
    e.destroy()
    assert not e.hints_path.exists()


@pytest.mark.soak
def test_policy_without_hints_has_none(agent_process: MakeAgentProcess) -> None:
    one, _ = agent_process("1", "fifo_centralized")
    assert not one.hints_path.exists()
    spec = POLICIES["fifo_centralized"]
    agent = Agent(one, spec, spec.parse().values)  # type: ignore[arg-type]
    with pytest.raises(GhostError, match="fifo_centralized has no hints"):
        agent.hints  # noqa: B018


@pytest.fixture
def hint_recorder(tmp_path: Path) -> Policy:
    """A FIFO in BPF that records the hints of each task it runs, with the function that the document shows."""
    (tmp_path / "heeds.h").write_text("struct note {\n\tu64 deadline_ns;\n\tu64 qos;\n};\n")
    (tmp_path / "heeds.bpf.c").write_text(
        code_block("c", 1)
        + """
#include "heeds.h"
BPF_HASH(notes, u32, struct note, 1024);

BPF_PROG(heeds_running, struct task_struct *p)
{
    struct note note = {.qos = qos_of(p)};
    struct hint_item item;
    u32 tid = p->pid;

    if (hint_of(p, &item))
        note.deadline_ns = item.deadline_ns;
    notes.update(&tid, &note);
    return 0;
}
"""
    )
    return Policy("heeds", "notes hints", directory=tmp_path)


def test_policy_in_bpf_reads_hints(workload: Workload, enclave: MakeEnclave, hint_recorder: Policy) -> None:
    e = enclave("1-2", hint_recorder)
    notes = Hash(
        Map.open(e.path / "policy_0" / "notes"), abi.load(hint_recorder.directory / "heeds.h"), "u32", "struct note"
    )
    first, second, plain = (workload.sleeper(e) for _ in range(3))

    def noted() -> list[tuple[int, int]]:
        found = []
        for child in (first, second, plain):
            goal = child.asleep().loops + 1
            child.wake()
            until(lambda child=child, goal=goal: child.loops == goal, f"{child} has run")
            found.append((notes[child.pid].deadline_ns, notes[child.pid].qos))
        return found

    assert noted() == [(0, 0)] * 3
    with Hints.open(e.hints_path) as hints:
        hints.set_class(2, one_shot=True, qos=7)
        hints.set_item(10, tid=first.pid, work_class=2, deadline_ns=111)
        hints.set_item(len(hints) - 1, tid=second.pid, work_class=1, deadline_ns=222)
        assert noted() == [(111, 7), (222, 0), (0, 0)]
        hints.set_runnable(10, False, deadline_ns=112)
        assert noted() == [(112, 7), (222, 0), (0, 0)]
        hints.set_item(10, tid=plain.pid, work_class=2, deadline_ns=113)
        assert noted() == [(0, 0), (222, 0), (113, 7)]
        hints.set_item(11, tid=first.pid, deadline_ns=114)
        assert noted() == [(114, 0), (222, 0), (113, 7)]


@SOAK
def test_command_finds_the_table_of_its_enclave(tmp_path: Path) -> None:
    (tmp_path / "earliest.py").write_text(code_block("python", 1))
    end = "import os, sys\nhints.set_item(9, tid=1)\nos.execvp(sys.argv[1], sys.argv[1:])\n"
    (tmp_path / "app.py").write_text(code_block("python", 0) + end)
    show = ("ghostbpf", "hints", "show", "1", "--json")
    done = ghostbpf("run", tmp_path / "earliest.py", "--cpus", "1-2", "--", "python3", tmp_path / "app.py", *show)
    assert (done.status, done.err) == (0, "")
    row = json.loads(done.out)
    assert row.items() >= {"item": 9, "tid": 1, "runnable": True, "class": 0, "kind": "", "qos": 0}.items()


def test_only_the_admitted_process_of_a_user_can_write_hints(
    workload: Workload, agent_process: MakeAgentProcess, earliest: type[AgentPolicy]
) -> None:
    one, _ = agent_process("1", earliest)
    told, tell = os.pipe()

    def body(me: Me) -> None:
        nobody()
        with pytest.raises(BpfError):
            Hints.open(one.hints_path)
        with Hints.receive(os.read(told, 200).decode(), DEADLINE) as hints:
            hints.set_item(5, tid=os.getpid())

    app = workload.spawn(body)
    with running("hints", "admit", "1", "--pid", app.pid) as admitting:
        admitting.until(lambda: "\n" in admitting.out)
        offer = admitting.out.strip()
        with pytest.raises(DescriptorError, match="is for another process"):
            Hints.receive(offer)
        os.write(tell, offer.encode())
        assert admitting.wait() == Done(0, offer + "\n", f"process {app.pid} has it\n")
    assert app.wait() == 0
    os.close(told)
    os.close(tell)
    with Hints.open(one.hints_path) as hints:
        assert [(index, item.tid, item.owner) for index, item in hints.updates()] == [(5, app.pid, app.pid)]


@pytest.mark.soak
def test_hints_commands_are_refused_where_the_policy_reads_no_hints(enclave: MakeEnclave) -> None:
    enclave("1")
    for arguments in (("show", "1"), ("admit", "1", "--user", "nobody")):
        done = ghostbpf("hints", *arguments)
        assert (done.status, done.err) == (1, "error: the policy of enclave 1, biff, reads no hints\n")
