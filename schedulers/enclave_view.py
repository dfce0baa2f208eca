# SPDX-License-Identifier: Apache-2.0
"""What the kernel reports about one enclave; nothing here changes it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from . import agents, limits
from .core import Core, Task, constant, has_fallen_back, live_bank, text
from .cpuset import CpuSet
from .lending import Lending
from .pins import ROOT
from .stats import Stats
from .stay_alive import Fallback


@dataclass(frozen=True)
class Counters:
    """Sums over all CPUs since the enclave was made; see ``struct counters`` in bpf/abi.h."""

    idle: int
    queued: int
    switches: int
    preempted: int
    affinity_misses: int
    runtime_ns: int
    lent_ns: int = 0
    borrowed_ns: int = 0
    borrowings: int = 0
    reclaims: int = 0

    @classmethod
    def total(cls, rows: Iterable[Self]) -> Self:
        """The sum of ``rows``."""
        values = [list(vars(row).values()) for row in rows]
        return cls(*map(sum, zip(*values, strict=True))) if values else cls(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Departures:
    """How many tasks left an enclave on their own since it was made; the last ones by tid and name, oldest first."""

    count: int
    last: tuple[tuple[int, str], ...]

    def since(self, count: int) -> Self:
        """The departures after the first ``count``."""
        more = self.count - count
        return type(self)(more, self.last[-more:] if more else ())


class EnclaveView:
    """One enclave, by ``id``; each property is read from the kernel when it is used."""

    def __init__(self, core: Core, id: int) -> None:
        self.core, self.id = core, id
        self._record: Any = core.enclaves[id]
        #: When the enclave was made, by CLOCK_BOOTTIME; no two enclaves have the same.
        self.created_ns = int(self._record.created_ns)

    @property
    def path(self) -> Path:
        """Its directory in bpffs."""
        return ROOT / f"enclave_{self.id}"

    @property
    def hints_path(self) -> Path:
        """The pin of its hint table, which is made with the first policy that reads hints."""
        return self.path / "hints"

    @property
    def is_active(self) -> bool:
        """Whether it still exists; a later enclave with the same id is another one."""
        return bool(self._record.state == constant("ENCLAVE_ACTIVE") and self._record.created_ns == self.created_ns)

    @property
    def is_being_destroyed(self) -> bool:
        """Whether a command has begun to destroy it, and has not finished."""
        return bool(self._record.state == constant("ENCLAVE_DYING"))

    @property
    def cpus(self) -> CpuSet:
        """The CPUs it owns, online or not; in a tree of policies, those of the tree."""
        return CpuSet.from_words(self._record.cpus) | CpuSet.from_words(self._record.reach)

    @property
    def tree(self) -> int:
        """The tree of policies that it belongs to, by the enclave that is the root; 0 if it is in none."""
        return int(self._record.tree)

    @property
    def is_root(self) -> bool:
        """Whether it is the root of a tree, which has no tasks."""
        return self.tree == self.id

    @property
    def granted(self) -> CpuSet:
        """The CPUs that run its tasks now: those of ``cpus`` that a tree's arbiters have given it, if it is in one."""
        return CpuSet.from_words(self._record.cpus)

    @property
    def spun_cpu(self) -> int | None:
        """The CPU on which its agent spins, and which therefore runs no tasks."""
        spun = self._record.spinner >> 32
        return int(spun) - 1 if spun else None

    @property
    def lending(self) -> Lending:
        """Whether it lends idle CPUs, and borrows those of others."""
        return Lending.from_bits(self._record.lending)

    @property
    def applies_cgroup_limits(self) -> bool:
        """Whether the ``cpu.max`` of a task's cgroup, and of those above it, holds for its tasks."""
        return not self._record.unlimited and limits.are_applied()

    @property
    def ignores_cgroup_limits(self) -> bool:
        """Whether it was told not to apply the limits of cgroups; a kernel may be unable to apply them."""
        return bool(self._record.unlimited)

    @property
    def policy(self) -> str:
        """The name of its live policy, also if the built-in FIFO has replaced it; see ``fallback``."""
        return text(self._record.policy[self.live_bank])

    @property
    def fallback(self) -> Fallback | None:
        """Why the core has replaced its policy by the built-in FIFO; None if it has not."""
        return self.last_fallback if has_fallen_back(self._record) else None

    @property
    def last_fallback(self) -> Fallback | None:
        """Why the core last replaced a policy of it by the built-in FIFO, also if another policy is live by now."""
        return Fallback.of(self.core.fallbacks[self.id])

    @property
    def fallbacks(self) -> int:
        """How often the core has replaced a policy of it by the built-in FIFO."""
        return int(self.core.fallbacks[self.id].count)

    @property
    def runnable_timeout_ns(self) -> int:
        """How long its policy may let a runnable task wait before the core replaces it; 0: for ever."""
        return int(self._record.runnable_timeout_ns)

    @property
    def agent(self) -> agents.AgentState | None:
        """Its agent; None if its policy has none."""
        shared = self._agents()
        return None if shared is None else shared.state

    def task_states(self) -> list[dict[str, Any]]:
        """What its agents know of its tasks: tid, state, seconds in it, sequence number; empty without agents."""
        shared = self._agents()
        return [] if shared is None else list(shared.task_states())

    def _agents(self) -> agents.Agents | None:
        return None if self.fallback or not self._record.agents[self.live_bank] else agents.Agents.open(self.id)

    def is_live(self, bank: int) -> bool:
        """Whether the policy in ``bank`` of the slots is live, and the built-in FIFO has not replaced it."""
        return self.live_bank == bank and not has_fallen_back(self._record)

    @property
    def live_bank(self) -> int:
        """The bank of its policy, also if the built-in FIFO has replaced it."""
        return live_bank(self._record)

    @property
    def nr_tasks(self) -> int:
        """How many tasks it has."""
        return len(self.tasks())

    @property
    def swaps(self) -> int:
        """How many times its policy was replaced."""
        return int(self._record.swaps)

    @property
    def uid(self) -> int:
        """The id of the user that made it."""
        return int(self._record.uid)

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - float(self._record.created_ns) / 1e9

    def per_cpu(self) -> dict[int, Counters]:
        """Its counters by CPU, for each CPU where one is not 0."""
        rows = {}
        for cpu, values in enumerate(self.core.counters[self.id]):
            counters = Counters(*(int(getattr(values, name)) for name in Counters.__dataclass_fields__))
            if any(vars(counters).values()):
                rows[cpu] = counters
        return rows

    def counters(self) -> Counters:
        """Its counters, all CPUs together."""
        return Counters.total(self.per_cpu().values())

    def stats(self) -> Stats | None:
        """Its statistics, all CPUs together; None if the core keeps none."""
        return Stats.of(self.core.counters[self.id]) if self.core.keeps_stats else None

    def departures(self) -> Departures:
        """The tasks that left the ext class, and so the enclave, without this program moving them."""
        record = self.core.departures[self.id]
        count, kept = int(record.count), len(record.last)
        last = (record.last[number % kept] for number in range(max(count - kept, 0), count))
        return Departures(count, tuple((int(task.tid), text(task.comm)) for task in last))

    def tasks(self) -> list[Task]:
        """Its tasks: in the ext class, or out of it only while priority inheritance lends them another class."""
        return [task for task in self.core.tasks() if task.enclave == self.id]
