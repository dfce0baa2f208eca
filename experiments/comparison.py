# SPDX-License-Identifier: Apache-2.0
"""Schedulers side by side, in one run: perf's benchmarks, wake-to-run latencies, and the work of agents."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..loaders.errors import GhostError
from ..schedulers.agents import AgentPolicySpec, Agents
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.policy import Policy, PolicyOptions
from ..schedulers.processes import children
from .candidates import EEVDF
from .measure import MESSAGING, PIPE, Row, perf, summary
from .wakelat import Latencies, WakeLatency

#: A policy, with its options; None is the kernel's own fair class.
Candidate = PolicyOptions[Policy] | None
#: Room in the ring for the messages of thousands of tasks that wake at once.
BIG_RING = {"ring_bytes": 16 << 20}

_PERCENTILES = {"wake-to-run p50": "p50", "wake-to-run p99": "p99", "wake-to-run p99.9": "p999"}


def compare(under: Mapping[str, Candidate], runs: int) -> list[Row]:
    """perf bench and wake-to-run latencies under each of ``under``, in turn; ratios are to EEVDF."""
    took: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for name, candidate in under.items():
            with joining(candidate) as join:
                for workload, command in (("messaging", MESSAGING), ("pipe", PIPE)):
                    took.setdefault((workload, name), []).append(perf(command, join))
                measured = latencies(MESSAGING, join)
            for what, field in _PERCENTILES.items():
                took.setdefault((what, name), []).append(getattr(measured, field) / 1e6)
    units = {"messaging": "s", "pipe": "s"} | dict.fromkeys(_PERCENTILES, "ms")
    return [
        summary(f"{what}, {name}", took[what, name], unit, took[what, EEVDF])
        for what, unit in units.items()
        for name in under
    ]


@dataclass(frozen=True)
class Work:
    """What all agents of an enclave together have done since they took over."""

    messages: int
    committed: int
    failed: int
    cpu_ns: int

    @classmethod
    def of(cls, enclave: Enclave) -> Self:
        """Until now; raises GhostError if messages were lost: the other numbers are then meaningless."""
        agents, agent_process = Agents.open(enclave.id), enclave.agent_process
        if agents is None or agent_process is None or not agent_process.check():
            raise GhostError("the agent ended", hint="run it again")
        channels = list(agents.channels)
        if any(channel.lost for channel in channels):
            raise GhostError("messages were lost", hint="run it again")
        messages, committed, failed = (
            sum(int(getattr(channel, name)) for channel in channels) for name in ("messages", "committed", "failed")
        )
        pids = [agent_process.pid, *children(agent_process.pid)]
        return cls(messages, committed, failed, sum(map(cpu_ns, pids)))

    def __sub__(self, before: Work) -> Work:
        return Work(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


def decisions(policy: AgentPolicySpec) -> dict[str, float]:
    """The agents' work and CPU time while they make every decision for a workload."""
    with Enclaves.temporary(policy.parse({"fastpath": "off"})) as enclave:
        before = Work.of(enclave)
        seconds = perf(MESSAGING, enclave.add)
        did = Work.of(enclave) - before
    return {
        "decisions/s": did.committed / seconds,
        "us of agent's CPU time per decision": did.cpu_ns / did.committed / 1e3,
        "messages per decision": did.messages / did.committed,
        "% of transactions that fail": 100 * did.failed / (did.committed + did.failed),
    }


@contextlib.contextmanager
def joining(candidate: Candidate) -> Iterator[Callable[[int], object] | None]:
    """The function that puts a task under ``candidate``; None for EEVDF."""
    if candidate is None:
        yield None
        return
    with Enclaves.temporary(candidate) as enclave:
        yield enclave.add


def latencies(workload: str, join: Callable[[int], object] | None) -> Latencies:
    """The wake-to-run latencies of ``workload``, whose process is given to ``join`` first."""
    with WakeLatency() as latency:

        def mark(pid: int) -> None:
            latency.mark(pid)
            if join is not None:
                join(pid)

        perf(workload, mark)
        return latency.read()


def cpu_ns(pid: int) -> int:
    """The CPU time of a process with one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[0])
