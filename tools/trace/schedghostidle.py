# SPDX-License-Identifier: Apache-2.0
"""From an idle CPU to a latched task; see bpf/tracers/schedghostidle.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .report import Section, Table
from .tool import HistogramTool
from .tracer import Tracer, ffi


class TOOL(HistogramTool):
    """A time begins when a CPU of an enclave becomes idle, and ends when a policy latches a task. After ghOSt's
    schedghostidle.
    """

    NAME = "schedghostidle"
    TRACES = "idle CPUs until a task is latched"
    HISTOGRAMS = (("idle_to_latched", "Latency of a CPU going Idle until a task is Latched:\n" + "-" * 52),)

    def make(self) -> Tracer:
        r = self.request
        return Tracer(self.NAME, r.filters, by=r.by, unit_ns=r.unit_ns, header="schedghostidle.h")

    def begin(self) -> None:
        super().begin()
        self._counted = dict.fromkeys(_COUNTS, 0)

    def why_nothing(self) -> str:
        return (
            super().why_nothing()
            if self.tracer.has_core
            else "there are no enclaves: ghostbpf run biff -- CMD makes one"
        )

    def report(self, seconds: float) -> Iterable[Section]:
        yield from super().report(seconds)
        cpus = self.tracer.per_cpu("totals", "struct idle_totals")[0]
        now = {name: sum(getattr(cpu, name) for cpu in cpus) for name in _COUNTS}
        grown = {name: now[name] - self._counted[name] for name in _COUNTS}
        self._counted = now
        if grown["latches"]:
            yield Table("latches", [grown], picture=_totals(grown, seconds, len(cpus)))


_COUNTS = tuple(name for name, _ in ffi("schedghostidle.h").typeof("struct idle_totals").fields if "latches" in name)


def _totals(grown: dict[str, Any], seconds: float, cpus: int) -> str:
    latches, by_bpf, from_idle = (grown[name] for name in _COUNTS)
    return (
        f"Total: {latches} events over {seconds:.3f} seconds ({latches / seconds:.1f} / sec) on {cpus} cpus\n"
        f"Total latches: {latches}, bpf_latches {by_bpf} ({100 * by_bpf / latches:.2f}), "
        f"idle_to_bpf_latches {from_idle} ({100 * from_idle / latches:.2f})"
    )
