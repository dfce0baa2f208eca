# SPDX-License-Identifier: Apache-2.0
"""What is measured, and in which order: candidates, workloads, and shuffled rounds."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ...schedulers.cpuset import CpuSet
from ...schedulers.policy import Policy, PolicyOptions, find
from ...schedulers.registry import POLICIES, from_file, is_file
from ..candidates import EEVDF, Attached, by_command, by_policy, eevdf
from ..naming import name_and_options, named_command
from .workloads import Workload

#: EEVDF is measured twice in each round: how far the two differ is what a comparison cannot tell.
AGAIN = "EEVDF again"
#: About how long a scheduler takes to start and to end.
_START_S = 1.0


@dataclass(frozen=True)
class Candidate:
    """A scheduler to compare: EEVDF, a policy with its options, or the words of a command that attaches one."""

    name: str
    policy: PolicyOptions[Policy] | None = None
    command: Sequence[str] | None = None

    def attached(self, cpus: CpuSet) -> AbstractContextManager[Attached]:
        """The scheduler, in charge for a block; raises GhostError if it does not start."""
        if self.policy is not None:
            return by_policy(self.policy, cpus)
        return by_command(self.command) if self.command is not None else eevdf()

    def describe(self) -> str:
        """How it is started, for people."""
        if self.command is not None:
            return shlex.join(self.command)
        return "the kernel's fair class" if self.policy is None else f"an enclave under {self.policy.policy.name}"


def candidates(policies: Sequence[str], commands: Sequence[str]) -> list[Candidate]:
    """EEVDF twice, each NAME[:option=value,…] of ``policies``, and each NAME=CMD of ``commands``.

    Raises ValueError, and GhostError for a policy that does not exist.
    """
    found = [Candidate(EEVDF), Candidate(AGAIN)]
    for text in policies:
        name, options = name_and_options(text)
        policy = from_file(name) if is_file(name) else find(name, POLICIES)
        found.append(Candidate(text, policy=policy.parse(options)))
    for text in commands:
        name, words = named_command(text)
        found.append(Candidate(name, command=words))
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'there are two candidates "{name}"')
    return found


@dataclass(frozen=True)
class Plan:
    """Each of ``workloads`` under each of ``candidates``, ``rounds`` times, on ``cpus``."""

    workloads: Sequence[Workload]
    candidates: Sequence[Candidate]
    rounds: int
    seed: int
    cpus: CpuSet

    def order(self) -> Iterator[tuple[int, Workload, list[Candidate]]]:
        """For each round, from 1, and each workload: the candidates, shuffled anew by the seed."""
        rng = random.Random(self.seed)
        for number in range(1, self.rounds + 1):
            for workload in self.workloads:
                yield number, workload, rng.sample(self.candidates, len(self.candidates))

    def seconds(self) -> float | None:
        """About how long it takes; None if that is unknown for a workload."""
        total = 0.0
        for workload in self.workloads:
            if workload.seconds is None:
                return None
            total += workload.seconds * (1 + self.rounds * len(self.candidates))
        starts = sum(_START_S for c in self.candidates if c.policy is not None or c.command is not None)
        return total + starts * self.rounds * len(self.workloads)
