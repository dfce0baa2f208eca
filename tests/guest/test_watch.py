# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf enclave watch`` during upgrades and ends of real agents."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator

import pytest
from command import ghostbpf, running
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.userspace import FIFO_CENTRALIZED, AgentProcess
from workload import MakeEnclave, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

MakeAgentProcess = Callable[[], AgentProcess]


@pytest.fixture
def agent_process() -> Iterator[MakeAgentProcess]:
    """Make agent processes that are ready to take over; they end with the test."""
    with contextlib.ExitStack() as ends:

        def make() -> AgentProcess:
            made = AgentProcess(FIFO_CENTRALIZED.parse())
            ends.callback(made.end)
            return made

        yield make


def _pair(workload: Workload, enclave: Enclave) -> None:
    """Two tasks bound to one CPU, which take turns under the core."""
    for _ in range(2):
        workload.spinner(enclave, cpus=[1]).progress()


def test_upgrade_has_no_blackout(enclave: MakeEnclave, agent_process: MakeAgentProcess) -> None:
    e = enclave("1-2", "fifo_centralized")
    first, second, third = agent_process().take_over(e), agent_process(), agent_process()
    with running("enclave", "watch", e.id, "--count", 2, "--json") as watch:
        watch.until(lambda: f"agent {first.pid} is in charge" in watch.err)
        for n, successor in enumerate((second, third), 1):
            e.set_policy(FIFO_CENTRALIZED)
            successor.take_over(e)
            watch.until(lambda n=n: watch.out.count("\n") == n)  # type: ignore[misc]
        done = watch.wait()
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.status == 0
    assert [(r["enclave"], r["before"], r["after"]) for r in rows] == [
        (e.id, first.pid, second.pid),
        (e.id, second.pid, third.pid),
    ]
    for row in rows:
        assert (row["blackout_ms"], row["switches"], row["kill_to_offline_ms"]) == (0, 0, None)
        assert row["resolution_ms"] > 0


@pytest.mark.parametrize("how", [["--sigkill"], []])
def test_watch_ends_the_agent_and_times_the_blackout_until_the_next(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess, how: list[str]
) -> None:
    e = enclave("1-2", "fifo_centralized")
    first, second = agent_process().take_over(e), agent_process()
    _pair(workload, e)
    with running("enclave", "watch", e.id, "--agent-pid", first.pid, *how, "--json") as watch:
        watch.until(lambda: not first.alive)
        before = e.counters().switches
        until(lambda: e.counters().switches > before + 3, "the core lets both run")
        assert watch.out == ""
        e.set_policy(FIFO_CENTRALIZED)
        second.take_over(e)
        done = watch.wait()
    (row,) = map(json.loads, done.out.splitlines())
    assert done.status == 0
    assert (row["before"], row["after"]) == (first.pid, second.pid)
    assert row["blackout_ms"] > 0
    assert row["switches"] > 3
    assert row["kill_to_offline_ms"] > 0
    assert (first.reason() == "killed by SIGKILL") == bool(how)


@pytest.mark.marathon
def test_watch_waits_for_the_first_agent_and_reports_the_upgrade_as_text(
    enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    e = enclave("1-2", "fifo_centralized")
    first, second = agent_process(), agent_process()
    with running("enclave", "watch", e.id) as watch:
        assert not watch.ended(0.5)
        assert watch.err == ""
        first.take_over(e)
        watch.until(lambda: "is in charge" in watch.err)
        second.take_over(e)
        done = watch.wait()
    assert done.status == 0
    assert done.out.startswith(f"agent {first.pid} -> {second.pid}: blackout 0 ns, 0 switches meanwhile; within ")


@pytest.mark.marathon
def test_watch_ends_on_ctrl_c_and_when_the_policy_has_no_agent(
    enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    e = enclave("1-2", "fifo_centralized")
    agent_process().take_over(e)
    with running("enclave", "watch", e.id) as watch, running("enclave", "watch", e.id) as other:
        for one in (watch, other):
            one.until(lambda one=one: "is in charge" in one.err)  # type: ignore[misc]
        watch.signal(signal.SIGINT)
        done = watch.wait()
        assert (done.status, done.out, "Traceback" in done.err) == (130, "", False)
        assert ghostbpf("enclave", "swap", e.id, "biff").status == 0
        done = other.wait()
    assert done.status == 1
    assert "has a policy without an agent by now" in done.err


@pytest.mark.marathon
def test_watch_refuses_to_kill_a_process_that_is_not_the_agent(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    e = enclave("1-2", "fifo_centralized")
    agent = agent_process().take_over(e)
    bystander = workload.sleeper()
    done = ghostbpf("enclave", "watch", e.id, "--agent-pid", bystander.pid)
    assert done.status == 1
    assert f"error: process {bystander.pid} is not the agent of enclave {e.id}" in done.err
    assert f"--agent-pid {agent.pid}" in done.err
    assert bystander.alive
    assert agent.alive
    assert ghostbpf("enclave", "watch", e.id, "--sigkill").status == 2
    assert ghostbpf("enclave", "watch", 63).status == 1
