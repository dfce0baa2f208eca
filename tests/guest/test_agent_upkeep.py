# SPDX-License-Identifier: Apache-2.0
"""Work of an agent other than decisions: it follows hotplug, collects its garbage and locks its memory."""

from __future__ import annotations

import os
import resource
import weakref
from collections.abc import Iterator

import pytest
from agents import Fifo, MakeAgent, MakeAgentProcess, children_of
from command import ghostbpf, without
from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.agents.channel import Pulse
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.userspace import Agent, AgentError, Transaction, agent_main
from workload import MakeEnclave, Workload, offline, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


def agent_of(enclave: Enclave, cpu: int) -> int:
    agents = Agents.open(enclave.id)
    return 0 if agents is None else int(agents.channels[1 + cpu].tid)


@pytest.mark.soak
@pytest.mark.parametrize("fastpath", ["off", "idle"])
def test_cpu_offline_at_the_start_gets_an_agent_when_it_is_back(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess, fastpath: str
) -> None:
    one = enclave("1-3")
    spinners = [workload.spinner(one) for _ in range(5)]
    with offline(3):
        _, agents = agent_process(one, "cfs", fastpath=fastpath)
        for spinner in spinners:
            spinner.progress()
        assert agent_of(one, 3) == 0
    until(lambda: agent_of(one, 3), "CPU 3 has an agent")
    assert agent_of(one, 3) in children_of(agents.pid)
    assert os.sched_getaffinity(agent_of(one, 3)) == {3}
    until(lambda: any(spinner.at == 3 for spinner in spinners), "CPU 3 is used")
    with offline(3):
        for spinner in spinners:
            spinner.progress()
    until(lambda: os.sched_getaffinity(agent_of(one, 3)) == {3}, "the agent is back on its CPU")
    until(lambda: any(spinner.at == 3 for spinner in spinners), "CPU 3 is used again")
    assert agents.check()


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_agent_that_started_while_a_cpu_was_offline_uses_it_later(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    one = enclave("1-3")
    spinners = [workload.spinner(one) for _ in range(4)]
    with offline(3):
        _, agents = agent_process(one, "fifo_centralized", fastpath="off", slice="5ms")
        spinners[0].progress()
    until(lambda: any(spinner.at == 3 for spinner in spinners), "CPU 3 is used")
    assert agents.check()


@pytest.mark.soak
def test_cpu_without_its_own_agent_runs_waiting_tasks(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_main._CpuAgents, "follow_cpus", lambda self: None)
    one = enclave("1-3")
    spinners = [workload.spinner(one) for _ in range(5)]
    with offline(3):
        _, agents = agent_process(one, "cfs", fastpath="off")
    for _ in range(3):
        for spinner in spinners:
            spinner.forget()
        until(lambda: any(3 in spinner.cpus_seen for spinner in spinners), "CPU 3 is used")
        for spinner in spinners:
            spinner.progress()
    assert agent_of(one, 3) == 0
    assert agents.check()


@pytest.mark.kernel_independent
def test_pulse_leaves_an_offline_cpu_and_restarts_on_a_cpu_that_is_back(agent: MakeAgent) -> None:
    one = agent("1-2")
    online = CpuSet([3])
    pulse = Pulse(one._channel._pulse._program, lambda: online)
    pulse.follow()
    pulse.follow()
    first = pulse._sampler
    assert pulse.cpu == 3
    with offline(3):
        online = CpuSet([2])
        until(lambda: pulse.follow() or pulse.cpu == 2, "the pulse is on CPU 2")
    assert pulse._sampler is not first
    assert pulse._sampler.is_alive()
    # Offline and online again between two calls of follow().
    second = pulse._sampler
    set_online(2, False)
    set_online(2, True)
    until(lambda: pulse.follow() or pulse._sampler is not second, "the pulse has a new sampler")
    assert pulse._sampler.is_alive()


class Litter:
    """Refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


class Litters(Fifo):
    """Makes garbage in each turn, and raises LookupError when the first of it has been collected."""

    name = "litters"
    fastpath = False

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.collected: list[int] = []
        self.turns = 0

    def schedule(self) -> Iterator[Transaction]:
        if self.collected:
            raise LookupError("it was collected")
        self.turns += 1
        if self.turns > 10:  # when the garbage of the start-up has been collected
            weakref.finalize(Litter(), self.collected.append, 1)
        return super().schedule()


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_agent_that_spins_collects_its_garbage(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1-3", Litters, spin="yes")
    child = workload.spinner(one)
    until(lambda: not agents.alive, "the agent ends")
    with pytest.raises(AgentError, match="it was collected"):
        agents.check()
    child.progress()


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_agent_whose_memory_cannot_be_locked_warns_and_decides() -> None:
    def limit() -> None:
        without("CAP_IPC_LOCK")()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))

    done = ghostbpf("run", "fifo_centralized", "--cpus", "1", "--", "sh", "-c", "exit 6", first=limit)
    assert done.status == 6
    assert done.err == (
        "warning: the agent's memory is not locked, and it may have to wait for a disk: Cannot allocate memory\n"
        "  try: give it CAP_IPC_LOCK, or: ulimit -l unlimited\n"
    )
