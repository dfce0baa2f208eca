# SPDX-License-Identifier: Apache-2.0
"""perf's pipe benchmark and the runs of BPF programs, in instructions, for ``make bench-exact``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..loaders.errors import GhostError
from .measure import perf_output, programs

OPERATIONS = 2000

Join = Callable[[int], object] | None


def pipe(operations: int, join: Join, cgroups: Sequence[str] = ()) -> float:
    """Instructions of all CPUs per operation: two wakeups and two switches.

    ``join`` puts a task under a scheduler. With two ``cgroups``, by name, each of the two tasks is in its own, and
    moves there while perf counts.
    """
    places = f" -G {','.join(cgroups)}" if cgroups else ""
    output = perf_output(f"perf bench sched pipe -l {operations}{places}", join)
    match = re.search(r"([\d.]+) usecs/op", output)
    if match is None:
        raise GhostError(f"perf bench sched pipe reported no time: {output[-200:]}")
    return float(match[1]) * 1000


def bpf_runs() -> dict[tuple[int, str], tuple[int, int]]:
    """How often each BPF program, by id and name, has run while statistics were on, and its nanoseconds."""
    return {(p["id"], p.get("name", "?")): (p.get("run_cnt", 0), p.get("run_time_ns", 0)) for p in programs()}
