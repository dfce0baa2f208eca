# SPDX-License-Identifier: Apache-2.0
"""Changes that a loader began and did not finish, and readers during a change."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from agents import MakeAgentProcess
from command import fork, ghostbpf
from ghostbpf.loaders.maps import Map
from ghostbpf.schedulers import agents as agents_module
from ghostbpf.schedulers import tasks
from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.core import Core
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import NoSuchEnclave
from ghostbpf.schedulers.pins import CORE
from ghostbpf.schedulers.registry import POLICIES
from workload import MakeEnclave, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def change() -> None:
    """What the next command does first."""
    with Enclaves.change():
        pass


@pytest.mark.soak
def test_next_command_dismisses_the_agent_that_a_killed_swap_left(
    workload: Workload, agent_process: MakeAgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, agents = agent_process("1", "fifo_centralized", fastpath="off")
    child = workload.spinner(one)

    def swap() -> None:
        monkeypatch.setattr(agents_module, "forget", die)
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).set_policy(POLICIES["rr"])

    assert fork(swap).wait().status == 137
    assert (one.policy, one.agent, one.task_states()) == ("rr", None, [])
    assert agents.alive
    change()
    until(lambda: not agents.alive, "the agent leaves")
    assert {path.name for path in one.path.iterdir()} == {"policy_1"}
    child.progress()


@pytest.mark.soak
def test_next_command_reports_the_task_that_a_killed_add_moved(
    workload: Workload, agent_process: MakeAgentProcess, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = agent_process("1", "fifo_centralized", fastpath="off")
    other = enclave("2")
    child, stays = workload.spinner(one), workload.spinner(one)
    child.progress()

    def move() -> None:
        monkeypatch.setattr(Agents, "depart", die)
        other.add(child.pid)

    assert fork(move).wait().status == 137
    child.forget()
    child.progress()
    assert child.pid in {row["tid"] for row in one.task_states()}
    change()
    assert {row["tid"] for row in one.task_states()} == {stays.pid}
    assert {task.tid: task.enclave for task in one.core.tasks()} == {child.pid: other.id, stays.pid: one.id}
    stays.progress()


@pytest.mark.parametrize("last", [pytest.param(True, marks=pytest.mark.soak), False], ids=["last", "one of two"])
def test_join_overtaken_by_a_destroy_leaves_the_task_unchanged(
    workload: Workload, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    if not last:
        enclave("3")
    one = enclave("1")
    child = workload.spinner()
    os.sched_setscheduler(child.pid, os.SCHED_BATCH, os.sched_param(0))
    enter = tasks.enter_ext

    def overtaken(tid: int) -> None:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).destroy()
        enter(tid)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "enter_ext", overtaken)
        with pytest.raises(NoSuchEnclave):
            one.add(child.pid)
    assert os.sched_getscheduler(child.pid) == os.SCHED_BATCH
    child.progress()


def test_run_whose_enclave_is_destroyed_first_does_not_start_the_command(
    enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave("3")
    from ghostbpf.tools import run as module

    start = module.Command.start

    def destroyed(command: object, prepare: Callable[[int], object]) -> None:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(5).destroy()
        start(command, prepare)  # type: ignore[arg-type]

    monkeypatch.setattr(module.Command, "start", destroyed)
    done = ghostbpf("run", "biff", "--cpus", "1", "--enclave", 5, "--", "echo", "it ran")
    assert (done.status, done.out) == (1, "")
    assert "there is no enclave 5" in done.err


@pytest.mark.soak
def test_readers_see_a_core_or_none_while_it_is_replaced(enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Map.open
    one = enclave("1")

    def slowly(path: Path, *arguments: object, **options: object) -> Map:
        found = opened(path, *arguments, **options)  # type: ignore[arg-type]
        if path.name == "tasks" and next(turns) % 2 == 0:
            with monkeypatch.context() as patch:
                patch.setattr(Map, "open", opened)
                with Enclaves.change() as enclaves:
                    for each in enclaves or ():
                        each.destroy()
                if next(comes_back):
                    with Enclaves.create() as created:
                        created.new(CpuSet([2]), POLICIES["biff"])
        return found

    turns, comes_back = itertools.count(), iter([True, False])
    with monkeypatch.context() as patch:
        patch.setattr(Map, "open", slowly)
        core = Core.open()
        assert core is not None
        assert [str(each.cpus) for each in Enclaves(core)] == ["2"]
        assert one not in Enclaves(core)
        assert Core.open() is None
    assert not CORE.exists()


@pytest.mark.soak
def test_readers_see_agents_or_none_while_they_are_replaced(
    workload: Workload, agent_process: MakeAgentProcess, enclave: MakeEnclave
) -> None:
    one = enclave("1")
    wrong: list[BaseException] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                Agents.open(one.id)
            except BaseException as error:
                wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    spec = POLICIES["fifo_centralized"]
    try:
        for _ in range(4):
            for policy in (spec, POLICIES["rr"]):
                with Enclaves.change() as enclaves:
                    assert enclaves is not None
                    enclaves.get(one.id).set_policy(policy)
    finally:
        ended.set()
        thread.join()
    assert wrong == []


@pytest.mark.soak
def test_run_waits_for_its_command_when_it_cannot_check_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ghostbpf.loaders.errors import BpfError
    from ghostbpf.schedulers.userspace import AgentProcess

    def cannot(self: AgentProcess) -> bool:
        raise BpfError("open a pin", 2)

    monkeypatch.setattr(AgentProcess, "check", cannot)
    done = ghostbpf("run", "fifo_centralized", "--cpus", "1", "--", "sh", "-c", "sleep 2; echo it ends; exit 6")
    assert (done.status, done.out) == (6, "it ends\n")
    assert done.err.count("warning: cannot open a pin") == 1
