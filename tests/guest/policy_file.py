# SPDX-License-Identifier: Apache-2.0
"""A policy in a Python file, run as a user runs it."""

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
    """An enclave under such a policy, and the command that keeps it."""

    enclave: Enclave
    process: Running

    @property
    def agent(self) -> AgentState:
        """Its agent, which decides still."""
        agent = self.enclave.agent
        assert agent is not None
        assert agent.state != "gone", self.process.err
        return agent


@contextlib.contextmanager
def scheduled(file: object, cpus: str, *options: str) -> Iterator[Scheduled]:
    """``ghostbpf run FILE --cpus CPUS OPTIONS`` for the block, ended by Ctrl-C; fails unless all of it goes well."""
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
    """Have a sleeper run and sleep again."""
    for _ in range(times):
        goal = child.asleep().loops + 1
        child.wake()
        until(lambda goal=goal: child.loops >= goal, f"{child} runs")
