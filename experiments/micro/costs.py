# SPDX-License-Identifier: Apache-2.0
"""What scheduling costs: switches under each scheduler, transactions and messages, in null system calls.

Switches are measured by micro.c. Transactions and messages are measured as in ``make bench``, by bench_agents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...schedulers.cpuset import CpuSet
from ..bench_agents import commit_costs, message_rates
from ..candidates import Attached
from ..native_programs import find
from .programs import MICRO
from .scalability import run

#: Tasks that wait while transactions are measured.
_BACKLOG = 100
#: A clock that counts instructions has about this for one, in nanoseconds.
_EXACT_NS = (0.9, 1.1)
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Cost:
    """What ``what`` costs under ``scheduler``: in ns, in null system calls, and in instructions, None if not known."""

    scheduler: str
    what: str
    ns: float
    calls: float
    instructions: float | None


def switches(name: str, scheduler: Attached, cpus: CpuSet, loops: int) -> Iterator[Cost]:
    """A null system call, and context switches by sched_yield() and by futexes, under one scheduler."""
    words = [str(MICRO.path()), "costs", "--loops", str(loops)]
    found, _, _ = run(words, scheduler, cpus, _LIMIT_S)
    null = found["null"]["ns"]
    for key, what in (
        ("null", "null system call"),
        ("yield", "switch by sched_yield()"),
        ("futex", "switch by a futex"),
    ):
        cost = found[key]
        yield Cost(name, what, cost["ns"], cost["ns"] / null, _instructions(cost, found["ns_of_nop"]))


def _instructions(cost: dict[str, Any], ns_of_nop: float) -> float | None:
    if _is_exact(ns_of_nop):
        return float(cost["ns"])
    return cost["instructions"] or None


def _is_exact(ns_of_nop: float) -> bool:
    return _EXACT_NS[0] <= ns_of_nop <= _EXACT_NS[1]


def check_programs() -> None:
    """Raise GhostError if a program is missing that transactions and messages need."""
    find("perf", "linux-perf")


def transactions(*, is_exact: bool) -> Iterator[Cost]:
    """Agent.commit from Python, by the number of transactions that it is given together."""
    result = commit_costs(_BACKLOG)
    for batch, ns in result["ns"].items():
        yield Cost("agent", f"transaction, {batch}", ns, ns / result["null"], ns if is_exact else None)


def messages(null_ns: float, *, is_exact: bool) -> Iterator[Cost]:
    """A message that an agent reads, alone and with what calls a policy."""
    for what, rate in zip(("message, read", "message, read and handled"), message_rates(), strict=True):
        ns = 1e9 / rate
        yield Cost("agent", what, ns, ns / null_ns, ns if is_exact else None)
