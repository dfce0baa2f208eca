# SPDX-License-Identifier: Apache-2.0
"""Limits of what an agent decides: other enclaves, all tasks, offline CPUs, its predecessors, and its time-out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import PATIENT, Fifo, MakeAgent, MakeAgentProcess, children_of, drive, loads, task_of
from command import ghostbpf, running
from ghostbpf.loaders.maps import MmapArray
from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import Transaction
from ghostbpf.schedulers.userspace.agent_cpu import AgentCpu
from test_agent_failures import deciding, go_on, load
from trace_tool import traced
from workload import MakeEnclave, Me, Workload, offline, present_cpus, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


class Hangs(Fifo):
    """Reads messages, but never ends a turn with tasks in its queue."""

    name = "hangs"
    fastpath = False

    def schedule(self) -> Iterator[Transaction]:
        while self.queue and not self.agent.stopped:
            time.sleep(0.01)
        return iter(())


def is_online(cpu: int) -> bool:
    """Whether CPU ``cpu`` is online."""
    return cpu in CpuSet.parse(Path("/sys/devices/system/cpu/online").read_text())


def channels(enclave: Enclave) -> MmapArray:
    """The channels of the agents of ``enclave``: 0 is the enclave's, 1 + n CPU n's."""
    agents = Agents.open(enclave.id)
    assert agents is not None
    return agents.channels


def show_longest_pause(me: Me) -> None:
    """Sleep again and again; show, as ``child.value``, for how many ns the CPU has run no task that woke."""
    longest_ns, before_ns = 0, time.monotonic_ns()
    while not me.stopped:
        time.sleep(0.01)
        now_ns = time.monotonic_ns()
        longest_ns, before_ns = max(longest_ns, now_ns - before_ns), now_ns
        me.set(longest_ns)


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["fifo_centralized", "fifo_per_cpu", "sol", "shinjuku", "edf", "cfs"])
def test_healthy_agent_under_load_and_at_rest_is_never_timed_out(
    workload: Workload, agent_process: MakeAgentProcess, policy: str
) -> None:
    """Under the default time-out, as users run it: 500 decisions, a rest of three time-outs, and one more decision."""
    one, agents = agent_process("1-3", policy, fastpath="off")
    timeout_ns = int(channels(one)[0].timeout_ns)
    assert timeout_ns == 200_000_000
    pauses = [workload.spawn(show_longest_pause, cpus=[cpu]) for cpu in present_cpus()]
    sleeper = workload.sleeper(one)
    children = load(workload, one)
    until(lambda: one.agent is not None and one.agent.committed >= 500, "the agent decides")
    go_on(children)
    for child in children:
        child.stop()
    time.sleep(3 * timeout_ns / 1e9)
    loops = sleeper.loops
    sleeper.wake()
    until(lambda: sleeper.loops > loops, "the sleeper ran")
    timeouts = {number: int(channel.timeouts) for number, channel in enumerate(channels(one)) if channel.timeouts}
    longest_ms = max(pause.value for pause in pauses) / 1e6
    if timeouts and longest_ms > timeout_ns / 2e6:
        pytest.skip(f"a CPU of this machine ran no task for {longest_ms:.0f} ms: its agents are timed out rightly")
    assert timeouts == {}, f"by channel, where no CPU paused for more than {longest_ms:.0f} ms"
    assert agents.check()


@pytest.mark.kernel_independent
def test_waiting_task_moved_to_another_enclave_runs_there(
    workload: Workload, agent: MakeAgent, enclave: MakeEnclave
) -> None:
    """Neither a message nor an enqueue by the kernel follows the move: the core itself must move the task."""
    one, other = agent("1-2"), enclave("3")
    children = [workload.spinner(one.enclave) for _ in range(3)]
    for child in children:
        task_of(one, child)
    for child in children:
        other.add(child.pid)
    drive(one, lambda: all(child.at in other.cpus for child in children), "they run in the other enclave")
    assert {task.tid for task in other.tasks()} == {child.pid for child in children}


@pytest.mark.kernel_independent(on="oldest")
def test_agent_that_hangs_in_a_turn_is_timed_out(workload: Workload, agent_process: MakeAgentProcess) -> None:
    """The task never blocks and is alone, so no unread message shows that the agent hangs."""
    one, agents = agent_process("1", Hangs)
    child = workload.spinner(one)
    until(lambda: one.agent is not None and one.agent.state == "timed_out", "it is timed out")
    child.progress(100)
    assert agents.alive


@pytest.mark.soak
@pytest.mark.kernel_independent
@pytest.mark.own_core
def test_sol_under_all_decides_for_an_ordinary_task(workload: Workload) -> None:
    sleeper = workload.sleeper()
    with running("run", "sol", "--all", "--agent-timeout", "10s") as process:
        process.until(lambda: "is scheduled by sol" in process.err)
        enclaves = Enclaves.open()
        assert enclaves is not None
        one = enclaves.get(1)
        before = one.agent
        rounds = 30
        for _ in range(rounds):
            loops = sleeper.loops
            sleeper.wake()
            until(lambda loops=loops: sleeper.loops > loops, "it runs")
            sleeper.asleep()
        after = one.agent
        assert before is not None
        assert after is not None
        assert after.committed - before.committed >= rounds
        assert after.failed - before.failed < rounds / 2
        assert sleeper.pid in {row["tid"] for row in one.task_states()}
        sleeper.kill()
        until(lambda: sleeper.pid not in {row["tid"] for row in one.task_states()}, "its status word is freed")
        process.signal(signal.SIGINT)
        assert process.wait().status == 0


@pytest.mark.soak
def test_cpu_offline_at_the_start_has_no_agent_and_no_load(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    one = enclave("1-3", "biff")
    children = load(workload, one)
    with offline(3):
        _, agents = agent_process(one, "fifo_per_cpu")
        go_on(children)
        assert deciding(one)
        assert [cpu for cpu in one.cpus if channels(one)[1 + cpu].tid] == [1, 2]
        assert len(children_of(agents.pid)) == 2
        until(lambda: sum(loads(one)) == len(children), "all are runnable at once")
        assert loads(one)[1 + 3] == 0


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_tasks_of_a_cpu_that_goes_offline_pass_to_other_agents(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("1-3", "fifo_per_cpu")
    children = [workload.spinner(one) for _ in range(9)]
    until(lambda: loads(one)[1 + 3] > 1, "tasks wait for CPU 3")
    with offline(3):
        until(lambda: loads(one)[1 + 3] == 0, "no task waits for CPU 3")
    assert agents.check()
    for child in children:  # all first: a killed task that waits ends only when it gets a CPU
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.wait()


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_cpu_that_goes_offline_as_its_agent_starts_gets_one_when_it_is_back(
    workload: Workload,
    agent_process: MakeAgentProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bind = AgentCpu.bind

    def bind_too_late(own: AgentCpu) -> None:
        """Take CPU 3 offline when its agent has been forked, the first two times."""
        if own._cpu == 3 and (times := len([*tmp_path.iterdir()])) < 2 and not own._is_bound:
            (tmp_path / str(times)).touch()
            set_online(3, False)
        bind(own)

    monkeypatch.setattr(AgentCpu, "bind", bind_too_late)
    one, agents = agent_process("1-3", "fifo_per_cpu")
    try:
        assert not channels(one)[1 + 3].tid
        children = [workload.spinner(one) for _ in range(3)]
        set_online(3, True)
        until(lambda: (tmp_path / "1").exists() and not is_online(3), "its next agent has come too late, too")
        set_online(3, True)
        until(lambda: channels(one)[1 + 3].tid, "CPU 3 has an agent")
    finally:
        set_online(3, True)
    go_on(children)
    assert agents.check()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.soak
def test_spinning_agent_gives_up_its_cpu_when_it_is_replaced_or_ends(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, first = agent_process("1-3", "fifo_centralized", spin="yes", agent_cpu="2")
    children = load(workload, one)
    until(lambda: one.spun_cpu is not None, "the agent spins on a CPU")
    _, second = agent_process(one, "sol", spin="yes", agent_cpu="2")
    until(lambda: not first.check(), "the first agent leaves")
    go_on(children)
    assert one.spun_cpu is not None
    second.end()
    assert one.spun_cpu is None
    go_on(children)


@pytest.mark.kernel_independent
def test_refused_option_of_a_new_agent_leaves_the_agent_in_charge(agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1", "fifo_centralized")
    before = one.agent
    for options, message in (
        (("--agent-cpu", 99), "CPU 99, for the agent, is not online"),
        (("--spin", "yes"), "an agent that spins needs a CPU besides"),
    ):
        done = ghostbpf("run", "sol", "--enclave", one.id, *options, "--", "true")
        assert (done.status, message in done.err) == (1, True), done.err
    assert agents.check()
    assert before is not None
    assert one.agent is not None
    assert (one.agent.tid, one.policy) == (before.tid, "fifo_centralized")


@pytest.mark.soak
def test_next_agent_reuses_no_gtid(workload: Workload, agent_process: MakeAgentProcess) -> None:
    def gtids(one: Enclave) -> set[int]:
        agents = Agents.open(one.id)
        assert agents is not None
        return {int(word.gtid) for word in agents.status_words if word.gtid}

    one, _ = agent_process("1-2", "fifo_centralized", fastpath="off")
    children = load(workload, one)
    until(lambda: len(gtids(one)) == len(children), "the first agent knows all tasks")
    before = gtids(one)
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(one.id).set_policy(POLICIES["biff"])
    agent_process(one, "fifo_centralized", fastpath="off")
    until(lambda: len(gtids(one)) == len(children), "the next agent knows all tasks")
    assert not before & gtids(one)


@pytest.mark.soak
def test_schedghostidle_counts_the_latches_of_an_agent(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, _ = agent_process("1-2", "fifo_centralized", fastpath="off", **PATIENT)
    sleeper = workload.sleeper(one)
    with traced("schedghostidle", "-t", sleeper.pid) as trace:
        for _ in range(23):
            loops = sleeper.loops
            sleeper.wake()
            until(lambda loops=loops: sleeper.loops > loops, "it ran")
            sleeper.asleep()
    (row,) = trace.rows("latches")
    assert row["latches"] >= 23
    assert row["bpf_latches"] < row["latches"] / 2


@pytest.mark.soak
def test_task_that_left_its_enclave_waits_for_no_latch(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1")
    keeps_it = workload.sleeper(one)
    child = workload.napper(one, busy_ms=0)
    one.remove(child.pid)
    with traced("schedlat", "-t", child.pid) as trace:
        child.progress(20)
    assert trace.histogram("runnable_to_run")["count"] > 0
    assert trace.of("histogram", "runnable_to_latched") == []
    assert [task.tid for task in one.tasks()] == [keeps_it.pid]
