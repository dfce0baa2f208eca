# SPDX-License-Identifier: Apache-2.0
"""What the cgroups of an enclave's tasks have used of their CPU limits there; bpf/core/limits.bpf.h counts it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..loaders.maps import MmapArray
from . import core as _core
from .cgroups import mount_point
from .core import Core
from .enclave_view import EnclaveView
from .limits import lineage
from .processes import ProcTask


@dataclass(frozen=True)
class CgroupUsage:
    """A limited cgroup: what it may use, and has used in enclaves since it got its limit, as in its ``cpu.stat``.

    ``left_usec`` is what is left of its quota in this period; a negative number was used in advance. ``throttled``:
    tasks of it wait for CPU time now, for ``wait_usec`` more.
    """

    cgroup: str
    quota_usec: int
    period_usec: int
    burst_usec: int
    left_usec: int
    throttled: bool
    wait_usec: int
    nr_periods: int
    nr_throttled: int
    throttled_usec: int
    nr_bursts: int
    usage_usec: int


def of_enclave(enclave: EnclaveView) -> list[CgroupUsage]:
    """The limited cgroups of ``enclave``'s tasks, and those above them, by name."""
    root = mount_point()
    known = {usage.cgroup: usage for usage in every(enclave.core)}
    directories: dict[str, Path] = {}
    for task in enclave.tasks():
        with contextlib.suppress(OSError):
            if (cgroup := ProcTask(task.tid).cgroup) is not None:
                directories |= dict(lineage(cgroup, root))
    rows = []
    for name, directory in sorted(directories.items()):
        with contextlib.suppress(OSError):
            if (usage := known.get(str(directory.stat().st_ino))) is not None:
                rows.append(CgroupUsage(**{**vars(usage), "cgroup": name}))
    return rows


def by_path(core: Core) -> list[CgroupUsage]:
    """Every limited cgroup that has a directory, by its name below the mount point."""
    left = {usage.cgroup: usage for usage in every(core)} if "limits" in core.maps else {}
    if not left:
        return []
    root, rows = mount_point(), []
    pending = [("/", str(root.stat().st_ino), str(root))]
    while pending and left:
        name, inode, directory = pending.pop()
        if (usage := left.pop(inode, None)) is not None:
            rows.append(CgroupUsage(**{**vars(usage), "cgroup": name}))
        with contextlib.suppress(OSError), os.scandir(directory) as entries:  # it may have gone
            below = (entry for entry in entries if entry.is_dir(follow_symlinks=False))
            pending += [(f"{name.rstrip('/')}/{entry.name}", str(entry.inode()), entry.path) for entry in below]
    return sorted(rows, key=lambda usage: usage.cgroup)


def every(core: Core) -> list[CgroupUsage]:
    """Every limited cgroup, named by its inode number."""
    now = time.monotonic_ns()
    with MmapArray(core.maps["limits"], _core.ffi(), "struct cgroup_limit") as records:
        return [
            CgroupUsage(
                cgroup=str(record.cgroup),
                quota_usec=record.quota_ns // 1000,
                period_usec=record.period_ns // 1000,
                burst_usec=record.burst_ns // 1000,
                left_usec=record.runtime_ns // 1000,
                throttled=record.throttled_since > 0,
                wait_usec=max(record.until_ns - now, 0) // 1000 if record.throttled_since else 0,
                nr_periods=record.nr_periods,
                nr_throttled=record.nr_throttled,
                throttled_usec=record.throttled_ns // 1000,
                nr_bursts=record.nr_bursts,
                usage_usec=record.usage_ns // 1000,
            )
            for record in (records[number] for number in range(1, len(records)))
            if record.cgroup and record.quota_ns
        ]
