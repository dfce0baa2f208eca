# SPDX-License-Identifier: Apache-2.0
"""What ``ghostbpf top`` reads at one moment: a snapshot of the core, and how busy each CPU was since boot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...loaders.errors import GhostError
from ...schedulers import snapshot
from ...schedulers.snapshot import Snapshot


@dataclass(frozen=True)
class CpuTime:
    """Ticks of one CPU since boot: those in which it ran a task or an interrupt, and all."""

    busy: int
    total: int


@dataclass(frozen=True)
class Sample:
    """``at`` is in seconds of CLOCK_MONOTONIC; ``error`` is why the core could not be read.

    ``times`` has the online CPUs alone: the kernel lists no others.
    """

    at: float
    state: Snapshot
    times: Mapping[int, CpuTime]
    error: GhostError | None = None


def read() -> Sample:
    """Read everything now. A core that cannot be read is part of the sample, and no exception."""
    error = None
    try:
        state = snapshot.take(tasks=True)
    except GhostError as problem:
        # The traceback's frames hold the core's maps open.
        state, error = Snapshot("unreadable"), problem.with_traceback(None)
    return Sample(time.monotonic(), state, cpu_times(Path("/proc/stat").read_text(encoding="utf-8")), error)


def cpu_times(stat: str) -> dict[int, CpuTime]:
    """The CPUs in the text of /proc/stat."""
    found = {}
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is part of user and nice.
            ticks = [int(field) for field in fields[:8]]
            found[int(name[3:])] = CpuTime(sum(ticks) - sum(ticks[3:5]), sum(ticks))
    return found
