# SPDX-License-Identifier: Apache-2.0
"""Nonsense in the table of hints harms neither other tasks nor agents."""

from __future__ import annotations

import random
import time

import pytest
from agents import PATIENT, MakeAgentProcess
from scribble import scribble
from workload import Me, Workload, until

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.shared_core,
    pytest.mark.kernel_independent,
    pytest.mark.soak,
]

_SECONDS = 20


@pytest.mark.parametrize("policy", ["edf", "shinjuku"])
def test_random_hints_harm_neither_other_tasks_nor_agents(
    workload: Workload, agent_process: MakeAgentProcess, rng: random.Random, policy: str
) -> None:
    one, agent = agent_process("1-3", policy, **PATIENT)

    def rewrites(me: Me) -> None:
        while not me.stopped:
            scribble(one.hints_path, rng, victim.pid, 20)
            me.note()
            time.sleep(0.001)

    others = [workload.napper(one, nap_ms=2) for _ in range(4)] + [workload.spinner(one)]
    victim = workload.spinner(one)
    writer = workload.spawn(rewrites, cpus=[0])
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        for child in others:
            child.progress(5)
        assert agent.check()
    writer.progress(20)
    assert one.fallback is None
    assert one.nr_tasks == len(others) + 1
    print(f"{writer.loops} rounds of changes; {one.agent}")
    writer.kill()
    until(lambda: one.agent is not None and one.agent.state == "deciding", "the agent decides")
    agent_process(one, policy, **PATIENT)
    for child in others:
        child.progress()
