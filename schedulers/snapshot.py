# SPDX-License-Identifier: Apache-2.0
"""The core and all its enclaves at one moment, for exporters; nothing here changes or holds them.

    state = snapshot.take()
    {enclave.id: enclave.counters.runtime_ns for enclave in state.enclaves}

The core and its enclaves may come and go meanwhile: what has gone before it was read completely is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..loaders import sched_ext
from ..loaders.errors import GhostError
from . import cgroup_usage, trees
from .agents import AgentState
from .cgroup_usage import CgroupUsage
from .core import Core, Task, last_eject
from .cpuset import CpuSet
from .enclave_view import Counters, EnclaveView
from .errors import Ejected
from .stats import Stats
from .trees import Leaf

_Read = TypeVar("_Read")

#: What the core can be; "unreadable" is for exporters that go on after an error.
STATES = ("attached", "detached", "ejected", "unreadable")


@dataclass(frozen=True)
class EnclaveState:
    """One enclave; ``fell_back``: the built-in FIFO schedules it now, ``fallbacks`` counts how often that began."""

    id: int
    policy: str
    cpus: CpuSet
    granted: CpuSet
    tree: int
    created_ns: int
    tasks: int
    counters: Counters
    per_cpu: Mapping[int, Counters]
    stats: Stats | None
    departures: int
    swaps: int
    fallbacks: int
    fell_back: bool
    agent: AgentState | None


@dataclass(frozen=True)
class CpuState:
    """One CPU that an enclave owns; ``taken``: a class above the ext class has it."""

    enclave: int
    taken: bool


@dataclass(frozen=True)
class Snapshot:
    """What was read; without a core, all but ``ejection`` is empty.

    ``leaves`` have the enclave that is their tree's root before them. ``events`` are the kernel's counts of SCX_EV_*,
    and ``ejection`` is the last since boot. ``tasks``, and ``cpus`` by number, are empty unless take() is told to read
    them.
    """

    state: str
    full: bool = False
    enclaves: tuple[EnclaveState, ...] = ()
    leaves: tuple[tuple[int, Leaf], ...] = ()
    cgroups: tuple[CgroupUsage, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    ejection: Ejected | None = None
    tasks: tuple[Task, ...] = ()
    cpus: Mapping[int, CpuState] = field(default_factory=dict)


def take(*, tasks: bool = False) -> Snapshot:
    """Read everything now; with ``tasks``, also each task and CPU. Raises StalePins, PermissionMissing and BpfError."""
    try:
        core = Core.open()
    except Ejected as ejected:
        # The traceback's frames hold the core's maps open.
        return Snapshot("ejected", ejection=ejected.with_traceback(None))
    if core is None:
        return Snapshot("detached", ejection=last_eject())
    counts = core.count_tasks()
    views = [view for view in (EnclaveView(core, id) for id in range(1, len(core.enclaves))) if view.is_active]
    enclaves = [_of(view, lambda view: _enclave(view, counts[view.id])) for view in views]
    roots = [view for view in views if view.is_root]
    trees_read = [_of(root, lambda root: [(root.id, leaf) for leaf in trees.leaves(root)]) for root in roots]
    state = Snapshot(
        "attached",
        full=core.full,
        enclaves=tuple(one for one in enclaves if one is not None),
        leaves=tuple(row for rows in trees_read for row in rows or ()),
        cgroups=tuple(cgroup_usage.by_path(core)),
        events=sched_ext.events(),
        ejection=last_eject(),
        tasks=tuple(core.tasks()) if tasks else (),
        cpus=_cpus(core, views) if tasks else {},
    )
    if core.attached:
        return state
    ejection = core.exited()
    return Snapshot("ejected" if ejection else "detached", ejection=ejection or state.ejection)


def _of(view: EnclaveView, read: Callable[[EnclaveView], _Read]) -> _Read | None:
    """What ``read`` returns, or None if the enclave was destroyed by then: the values may be another enclave's."""
    found = None
    with contextlib.suppress(GhostError, OSError):
        found = read(view)
    if not view.is_active:
        return None
    return read(view) if found is None else found


def _cpus(core: Core, views: list[EnclaveView]) -> dict[int, CpuState]:
    owned = sorted(cpu for view in views for cpu in view.cpus)
    return {cpu: CpuState(int(core.cpus[cpu].enclave), bool(core.cpus[cpu].preempted_by_class)) for cpu in owned}


def _enclave(view: EnclaveView, tasks: int) -> EnclaveState:
    per_cpu = view.per_cpu()
    return EnclaveState(
        id=view.id,
        policy=view.policy,
        cpus=view.cpus,
        granted=view.granted,
        tree=view.tree,
        created_ns=view.created_ns,
        tasks=tasks,
        counters=Counters.total(per_cpu.values()),
        per_cpu=per_cpu,
        stats=view.stats(),
        departures=view.departures().count,
        swaps=view.swaps,
        fallbacks=view.fallbacks,
        fell_back=view.fallback is not None,
        agent=view.agent,
    )


def boot_time() -> int:
    """When the machine booted, in seconds since 1970: the zero of CLOCK_BOOTTIME, the same in each call."""
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("btime "))
