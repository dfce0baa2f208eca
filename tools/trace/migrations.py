# SPDX-License-Identifier: Apache-2.0
"""Tasks that move between CPUs; see bpf/tracers/migrations.bpf.c."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import click

from .classes import ext_class
from .counts import TOP, Counters
from .report import Section, Table
from .tool import Tool
from .tracer import Tracer, comm, ffi


class TOOL(Tool):
    """Moves of tasks between CPUs: for each task with the reasons, and as a matrix of CPUs.

    \b
    Reasons: fork, exec, wakeup; affinity (the task may not use its previous
    CPU), stopper (the CPU goes offline, or a running task is moved), ext
    (the sched_ext scheduler), balance (load balancing).
    """

    NAME = "migrations"
    TRACES = "migrations"
    BREAKS_DOWN = False
    PLOTS = False
    OPTIONS = (
        click.Option(["-M", "--matrix"], is_flag=True, help="Print only the matrix of CPUs."),
        TOP,
    )

    def make(self) -> Tracer:
        return Tracer(self.NAME, self.request.filters, constants=ext_class(), header="migrations.h")

    def begin(self) -> None:
        self._counters = Counters()
        reasons = ffi("migrations.h").typeof("enum migration_reason").elements
        self._reasons = {number: name.removeprefix("MOVED_").lower() for number, name in reasons.items()}

    def report(self, seconds: float) -> Iterable[Section]:
        now = {
            (key.tid, comm(key.comm), getattr(key, "from"), key.to, self._reasons[key.reason]): count
            for key, count in self.tracer.hash("counts", "struct migration_key", "u64").items()
        }
        moves = self._counters.growth(now)
        if not self.request.options["matrix"]:
            rows = [
                {"tid": tid, "comm": name, "from": start, "to": end, "reason": reason, "count": count}
                for (tid, name, start, end, reason), count in moves
            ]
            yield Table("migrations", rows, top=self.request.options["top"])
        yield _matrix(Counter({move[2:4]: 0 for move, _ in moves}), moves)


def _matrix(pairs: Counter[tuple[int, int]], moves: list[tuple[tuple[int, str, int, int, str], int]]) -> Table:
    for (_, _, start, end, _), count in moves:
        pairs[start, end] += count
    cpus = sorted({cpu for pair in pairs for cpu in pair})
    lines: list[list[object]] = [[start, *(pairs.get((start, end)) or "." for end in cpus)] for start in cpus]
    from tabulate import tabulate

    picture = tabulate(lines, headers=["from\\to", *map(str, cpus)], disable_numparse=True, stralign="right")
    return Table("matrix", [{"from": a, "to": b, "count": n} for (a, b), n in sorted(pairs.items())], picture=picture)
