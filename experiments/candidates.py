# SPDX-License-Identifier: Apache-2.0
"""Schedulers to measure, attached for a block: policies in an enclave, and those that a command attaches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.errors import AgentError
from ..schedulers.policy import Policy, PolicyOptions
from .other_scheduler import SchedulerLost, attached

EEVDF = "EEVDF"


@dataclass(frozen=True)
class Attached:
    """A scheduler in charge; ``join`` puts a task under it, None where it has all tasks.

    ``check`` raises SchedulerLost if it is no longer in charge. ``pid`` is its process in user space, and ``enclave``
    the enclave of a policy. The two tasks of perf's pipe are to be in ``pipe_cgroups``, by their names.
    """

    join: Callable[[int], object] | None = None
    check: Callable[[], object] = lambda: None
    pid: int | None = None
    enclave: Enclave | None = None
    pipe_cgroups: Sequence[str] = ()


#: Attaches a scheduler for a block; raises GhostError if it does not start.
Scheduler = Callable[[], AbstractContextManager[Attached]]


def eevdf() -> AbstractContextManager[Attached]:
    """The kernel's own fair class."""
    return contextlib.nullcontext(Attached())


def of_enclave(enclave: Enclave) -> Attached:
    """The scheduler of an enclave."""
    agent = enclave.agent_process

    def check() -> None:
        if (ejected := enclave.core.exited()) is not None:
            raise SchedulerLost(f"the kernel ejected it: {ejected}", hint="ghostbpf why explains it")
        if enclave not in Enclaves(enclave.core):
            raise SchedulerLost("its enclave was destroyed")
        if (why := enclave.fallback) is not None:
            raise SchedulerLost(f"the built-in FIFO has replaced it: {why}")
        try:
            if agent is not None and not agent.check():
                raise SchedulerLost("another agent took over")
        except AgentError as error:
            raise SchedulerLost(f"{error}") from error

    return Attached(enclave.add, check, agent.pid if agent is not None else None, enclave)


@contextlib.contextmanager
def by_policy(options: PolicyOptions[Policy] | Policy, cpus: CpuSet | None = None) -> Iterator[Attached]:
    """A policy in an enclave of ``cpus`` (default: all)."""
    with Enclaves.temporary(options, cpus) as enclave:
        yield of_enclave(enclave)


@contextlib.contextmanager
def by_command(command: Sequence[str]) -> Iterator[Attached]:
    """The scheduler that ``command`` attaches."""
    with attached(command) as other:
        yield Attached(other.join, other.check, other.pid)
