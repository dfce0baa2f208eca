# SPDX-License-Identifier: Apache-2.0
"""Run a policy in a Python file as a user does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from command import Running, running
from ghostbpf.schedulers.agents import AgentState
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from workload import Child, until


@dataclass(frozen=True)
class Scheduled:
    """An enclave under a policy from a file, and the command that keeps it."""

    enclave: Enclave
    process: Running

    @property
    def agent(self) -> AgentState:
        """Its agent; AssertionError if it is gone."""
        agent = self.enclave.agent
        assert agent is not None
        assert agent.state != "gone", self.process.err
        return agent


@contextlib.contextmanager
def scheduled(file: object, cpus: str, *options: str) -> Iterator[Scheduled]:
    """Run ``ghostbpf run FILE --cpus CPUS OPTIONS`` during the block, end it by Ctrl-C, and check that it succeeded."""
    with running("run", file, "--cpus", cpus, *options) as process:
        process.until(lambda: "is scheduled by" in process.err)
        (enclave,) = Enclaves.open() or ()
        yield Scheduled(enclave, process)
        process.signal(signal.SIGINT)
        done = process.wait()
    assert done.status == 0, done.err
    assert "rror" not in done.err
    assert not (enclaves := Enclaves.open()) or enclave not in enclaves


def wake(child: Child, times: int = 1) -> None:
    """Wake a sleeper ``times`` times, and wait each time until it has run."""
    for _ in range(times):
        goal = child.asleep().loops + 1
        child.wake()
        until(lambda goal=goal: child.loops >= goal, f"{child} runs")
