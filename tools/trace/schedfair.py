# SPDX-License-Identifier: Apache-2.0
"""CPU time over fair share; see bpf/tracers/schedfair.bpf.c."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .report import Section, Table
from .tool import Tool
from .tracer import Tracer, ffi

_HEADER = "schedfair.h"
_HEAD = "Pr | .0 .1 .2 .3 .4 .5 .6 .7 .8 .9 1x 11 12 13 14 15 16 17 18 19  most   all"
_TOP = 99


class TOOL(Tool):
    """The CPU time of tasks over their fair share of the CPUs, which is 1x: a row for each priority (nice + 20), a
    column for each tenth of the share, and each row scaled to 99. The first table has each time from wakeup to block,
    the second each task's whole trace. After ghOSt's schedfair.
    """

    NAME = "schedfair"
    TRACES = "run time and fair shares"
    BREAKS_DOWN = False
    PLOTS = False

    def make(self) -> Tracer:
        milli = 1000 * (os.cpu_count() or 1)
        return Tracer(self.NAME, self.request.filters, constants={"milli_cpus": milli}, header=_HEADER)

    def begin(self) -> None:
        self._bins = _constant("FAIR_BINS")
        self._prios = _constant("FAIR_PRIOS")
        self._before = [0] * (self._bins * self._prios)

    def report(self, seconds: float) -> Iterable[Section]:
        windows = self.tracer.per_cpu("windows", "u64")
        bins = self._bins
        now = [sum(windows[index]) for index in range(len(self._before))]
        grown = [n - b for n, b in zip(now, self._before, strict=True)]
        self._before = now
        wake_to_block = {prio: row for prio in range(self._prios) if any(row := grown[prio * bins : (prio + 1) * bins])}
        full_trace: dict[int, list[int]] = {}
        for task in self.tracer.hash("totals", "u64", "struct fair_task").values():
            if task.share:
                bin = min(task.ran * 10 * 1000 // task.share, bins - 1)
                full_trace.setdefault(task.prio, [0] * bins)[bin] += 1
        yield _table("wake_to_block", "Wake-to-block Fairness", wake_to_block)
        yield _table("full_trace", "Full trace Fairness", dict(sorted(full_trace.items())))


def _short(count: int) -> str:
    """``count`` in at most five characters."""
    for unit in ("", "k", "M", "G"):
        if count < 10_000:
            return f"{count}{unit}"
        count //= 1000
    return f"{count}T"


def _constant(name: str) -> int:
    return int(getattr(ffi(_HEADER).dlopen(None), name))


def _table(name: str, title: str, rows: dict[int, list[int]]) -> Table:
    lines = [_HEAD]
    for prio, counts in rows.items():
        maximum = max(counts)
        scaled = " ".join(f"{_TOP * count // maximum:2d}" for count in counts)
        lines.append(f"{prio:2d} | {scaled} {_short(maximum):>5s} {_short(sum(counts)):>5s}")
    data = [
        {"prio": prio, "nice": prio - 20, "tenths": bin, "count": count}
        for prio, counts in rows.items()
        for bin, count in enumerate(counts)
        if count
    ]
    return Table(name, data, title, "\n".join(lines))
