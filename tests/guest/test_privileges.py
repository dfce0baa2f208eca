# SPDX-License-Identifier: Apache-2.0
"""Agents in charge have no more privileges than they need."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import MakeAgentProcess, children_of
from ghostbpf.loaders.capabilities import NUMBERS
from ghostbpf.schedulers.agents import Agents
from workload import Workload, offline, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

KEPT = sum(1 << NUMBERS[name] for name in ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE", "CAP_IPC_LOCK"))


def privileges(pid: int) -> tuple[int, int, str]:
    """The effective and permitted capabilities of a process, and whether it has no_new_privs."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"]


def test_agents_in_charge_keep_four_capabilities_and_get_no_others(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("2-3", "fifo_per_cpu")
    child = workload.spinner(one)
    with offline(3):
        child.progress(10)
    # The agent of the CPU that is back is made by one that has dropped its privileges.
    found = Agents.open(one.id)
    assert found is not None
    until(lambda: found.channels[1 + 3].tid, "CPU 3 has an agent")
    processes = [agents.pid, *children_of(agents.pid)]
    assert len(processes) == 3
    assert [privileges(pid) for pid in processes] == [(KEPT, KEPT, "1")] * 3
    child.progress(10)
    assert agents.check()
