# SPDX-License-Identifier: Apache-2.0
"""Tasks that may use none of their enclave's CPUs; the core's built-in FIFO runs them outside the enclave."""

from __future__ import annotations

import os

from ..loaders.errors import GhostError
from .cgroups import mount_point
from .cpuset import CpuSet
from .enclave import Enclave
from .errors import NoUsableCpu
from .limits import lineage
from .processes import ProcTask


def allowed(tid: int) -> CpuSet | None:
    """The online CPUs that task ``tid`` may use; None if it has ended."""
    try:
        return CpuSet(os.sched_getaffinity(tid))
    except ProcessLookupError:
        return None


def excludes(tid: int, cpus: CpuSet) -> CpuSet | None:
    """The CPUs that task ``tid`` may use, if ``cpus`` has none of them; else None."""
    own = allowed(tid)
    return own if own is not None and not own & cpus else None


def check(tid: int, enclave: Enclave) -> None:
    """Raise NoUsableCpu if task ``tid`` may use none of the CPUs of ``enclave``."""
    if (own := excludes(tid, enclave.cpus)) is not None:
        raise NoUsableCpu(enclave.id, str(enclave.cpus), str(own), cpuset_that_excludes(tid, enclave.cpus))


def cpuset_that_excludes(tid: int, cpus: CpuSet) -> str | None:
    """The cgroup whose cpuset excludes all of ``cpus`` for task ``tid``; None if its affinity alone does."""
    try:
        cgroup, root = ProcTask(tid).cgroup, mount_point()
    except (OSError, GhostError):
        return None
    for name, directory in lineage(cgroup, root):
        # A cgroup without the cpuset controller has the CPUs of the cgroup above it.
        if (file := directory / "cpuset.cpus.effective").exists():
            return None if CpuSet.parse(file.read_text(encoding="utf-8")) & cpus else name
    return None
