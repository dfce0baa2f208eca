# SPDX-License-Identifier: Apache-2.0
"""exec() by a thread that is not the leader: the thread gets the leader's pid, and runs on under its agent."""

from __future__ import annotations

import os
import threading

import pytest
from agents import MakeAgentProcess, loads
from ghostbpf.schedulers.enclave import Enclave
from workload import DEADLINE, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

#: The core runs a task that its agent cannot find once in 5 s: this many sleeps then exceed every deadline.
SLEEPS = int(DEADLINE / 5) + 8
SCRIPT = f"i=0; while [ $i -lt {SLEEPS} ]; do sleep 0.005; i=$((i+1)); done"


def exec_from_thread(me: Me) -> None:
    """Call exec() in a thread that is not the leader."""
    del me
    thread = threading.Thread(target=os.execv, args=("/bin/sh", ["sh", "-c", SCRIPT]))
    thread.start()
    thread.join()


def failed(enclave: Enclave) -> int:
    """The number of transactions that the core has refused."""
    agent = enclave.agent
    assert agent is not None
    return agent.failed


@pytest.mark.soak
@pytest.mark.parametrize(
    ("policy", "fastpath"),
    [
        *((policy, "off") for policy in ("fifo_centralized", "fifo_per_cpu", "sol", "shinjuku", "edf", "cfs")),
        ("fifo_centralized", "idle"),
    ],
)
def test_thread_that_execs_runs_on_under_its_agent(
    workload: Workload, agent_process: MakeAgentProcess, policy: str, fastpath: str
) -> None:
    enclave, _ = agent_process("1-2", policy, fastpath=fastpath)
    before = failed(enclave)
    children = [workload.spawn(exec_from_thread, enclave) for _ in range(2)]
    for child in children:
        assert child.wait() == 0
    until(lambda: enclave.nr_tasks == 0, "the enclave is empty")
    until(lambda: not any(loads(enclave)), "no channel has a load")
    # A task may change between decision and commit; a refusal for each sleep means that every commit failed.
    assert failed(enclave) - before < SLEEPS
