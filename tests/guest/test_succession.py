# SPDX-License-Identifier: Apache-2.0
"""A succession of agents in one enclave."""

from __future__ import annotations

import os
import signal

import pytest
from ghostbpf.loaders.maps import possible_cpus
from ghostbpf.schedulers.userspace import FIFO_CENTRALIZED, AgentProcess
from workload import MakeEnclave, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]


@pytest.mark.soak
@pytest.mark.parametrize(
    "end",
    [lambda agent_process: os.kill(agent_process.pid, signal.SIGKILL), AgentProcess.end],
    ids=["killed", "leaves"],
)
def test_agents_that_ended_leave_room_for_more_than_there_are_cpus(
    workload: Workload, enclave: MakeEnclave, end: object
) -> None:
    e = enclave("1-2", "fifo_centralized")
    child = workload.spinner(e)
    for _ in range(possible_cpus() + 3):
        agent_process = AgentProcess(FIFO_CENTRALIZED.parse()).take_over(e)
        assert e.agent.tid == agent_process.pid  # type: ignore[union-attr]
        child.progress()
        end(agent_process)  # type: ignore[operator]
        until(lambda: e.agent.state == "gone", "the agent is gone")  # type: ignore[union-attr]
        agent_process.reason()
