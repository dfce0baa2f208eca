# SPDX-License-Identifier: Apache-2.0
"""Wake-to-run latency of one process tree under any scheduler; see bpf/tracers/wakelat.bpf.c."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..loaders import Hash, Link, MmapArray, Module, PerCpuArray, Target, abi, compile
from ..loaders.source import BPF_DIR
from ..tools.trace.histogram import edges

_SOURCE = BPF_DIR / "tracers" / "wakelat.bpf.c"
_TRACEPOINTS = {
    "wakelat_fork": "sched_process_fork",
    "wakelat_exit": "sched_process_exit",
    "wakelat_wakeup": "sched_wakeup",
    "wakelat_wakeup_new": "sched_wakeup_new",
    "wakelat_switch": "sched_switch",
}


@dataclass(frozen=True)
class Latencies:
    """The result of one measurement; times in ns."""

    switches: int
    forks: int
    exits: int
    unmarked: int
    waits: int
    p50: int
    p99: int
    p999: int
    longest: int
    longest_gap: int

    @property
    def running(self) -> int:
        """How many tasks have not ended: the marked one, and its descendants that could be marked."""
        return 1 + self.forks - self.unmarked - self.exits


class WakeLatency:
    """Attached for the length of a with block; ``mark`` the root of a process tree, then ``read``."""

    def __enter__(self) -> Self:
        ffi = abi.load(_SOURCE.with_name("wakelat.h"))
        self._module = Module(compile(_SOURCE))
        self._links = [
            Link.tracepoint(self._module.load(function, Target.tracepoint(name)))
            for function, name in _TRACEPOINTS.items()
        ]
        maps = self._module.maps
        self._waits = PerCpuArray(maps["waits"], ffi, "u64")
        self._totals = MmapArray(maps["totals"], ffi, "struct wakelat_totals")
        self._marks = Hash(maps["marks"], ffi, "s32", "struct wakelat_mark")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            link.close()
        self._module.close()

    def mark(self, pid: int) -> None:
        """Measure task ``pid`` and its future descendants."""
        pidfd = os.pidfd_open(pid)
        try:
            self._marks[pidfd] = {}
        finally:
            os.close(pidfd)

    def reset_gap(self) -> None:
        """Measure the longest gap from here on."""
        self._totals[0].last_on = 0
        self._totals[0].longest_gap_ns = 0

    @property
    def longest_gap(self) -> int:
        """The longest time, in ns, without a switch to a marked task."""
        return int(self._totals[0].longest_gap_ns)

    def read(self) -> Latencies:
        """The result so far."""
        counts = [sum(self._waits[bucket]) for bucket in range(len(self._waits))]
        total = self._totals[0]
        return Latencies(
            switches=int(total.switches),
            forks=int(total.forks),
            exits=int(total.exits),
            unmarked=int(total.unmarked),
            waits=sum(counts),
            p50=_percentile(counts, 0.50),
            p99=_percentile(counts, 0.99),
            p999=_percentile(counts, 0.999),
            longest=int(total.longest_ns),
            longest_gap=int(total.longest_gap_ns),
        )


def _percentile(counts: list[int], share: float) -> int:
    """The highest value, in ns, of the percentile's bucket; 0 without counts."""
    target, seen = share * sum(counts), 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= target:
            return edges(bucket)[1] - 1
    return 0
