# SPDX-License-Identifier: Apache-2.0
"""CPU limits of control groups (version 2): ``cpu.max``, ``cpu.weight`` and ``cpu.idle``.

The kernel applies them to tasks of the fair class only, and leaves those of SCHED_EXT to the scheduler. The core
applies ``cpu.max`` to tasks of enclaves (bpf/core/limits.bpf.h). Policies that weigh cgroups apply the other two.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..loaders import kernel_types
from ..loaders.btf import Kind
from ..loaders.errors import GhostError
from .cgroups import mount_point
from .processes import ProcTask

#: The value of each file that means no limit.
_UNLIMITED = {"cpu.max": "max", "cpu.weight": "100", "cpu.idle": "0"}


@dataclass(frozen=True)
class Limit:
    """The ``settings`` of one cgroup that limit it, each as in its file: "cpu.max 10000 100000"."""

    cgroup: str
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.settings)} of cgroup {self.cgroup}"

    def without(self, names: Collection[str]) -> Limit | None:
        """The same without the settings ``names``; None if these are all."""
        rest = tuple(setting for setting in self.settings if setting.split()[0] not in names)
        return Limit(self.cgroup, rest) if rest else None


def are_applied() -> bool:
    """Whether enclaves can apply ``cpu.max`` on this kernel; see CAN_LIMIT in bpf/core/limits.bpf.h."""
    return kernel_types.find("init_cfs_bandwidth", Kind.FUNC) is not None


def of_task(tid: int) -> list[Limit]:
    """The limits of task ``tid`` in the fair class, those of its own cgroup first; none if it has ended."""
    try:
        cgroup = ProcTask(tid).cgroup
        return list(at_and_above(cgroup, mount_point())) if cgroup else []
    except (OSError, GhostError):
        return []


def at_and_above(cgroup: str, root: Path) -> Iterator[Limit]:
    """The limits of ``cgroup`` and of the cgroups above it, below the mount point ``root``.

    In a cgroup namespace the root has these files too: the limits of the namespace's root cgroup.
    """
    for name, directory in lineage(cgroup, root):
        if settings := _settings(directory):
            yield Limit(name, settings)


def lineage(cgroup: str, root: Path) -> Iterator[tuple[str, Path]]:
    """The names and directories of ``cgroup`` and of the cgroups above it, up to the mount point ``root``."""
    parts = [part for part in cgroup.split("/") if part]
    if ".." in parts:
        parts = []  # a cgroup outside the reader's cgroup namespace has no directory here
    for depth in range(len(parts), -1, -1):
        yield "/" + "/".join(parts[:depth]), root.joinpath(*parts[:depth])


def everywhere(root: Path) -> Iterator[Limit]:
    """The limits of every cgroup below the mount point ``root``."""
    for directory, subdirectories, _ in os.walk(root):
        subdirectories.sort()
        if settings := _settings(Path(directory)):
            yield Limit("/" + str(Path(directory).relative_to(root)).removeprefix("."), settings)


def _settings(directory: Path) -> tuple[str, ...]:
    settings = {}
    for name, unlimited in _UNLIMITED.items():
        # Without the cpu controller, and at the root, the file does not exist.
        with contextlib.suppress(OSError):
            value = (directory / name).read_text(encoding="utf-8").strip()
            if value.split()[:1] != [unlimited]:
                settings[name] = value
    if "cpu.idle" in settings:
        settings.pop("cpu.weight", None)  # the weight of an idle cgroup is 0 and cannot be set
    return tuple(f"{name} {value}" for name, value in settings.items())
