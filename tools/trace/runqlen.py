# SPDX-License-Identifier: Apache-2.0
"""Run queue lengths; see bpf/tracers/runqlen.bpf.c."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

import click

from ...loaders import KernelUnsupported, kernel_types
from .histogram import LinearHistogram
from .report import HistogramSection, Section, Table
from .tool import Tool
from .tracer import Tracer


class TOOL(Tool):
    """Waiting tasks of all scheduling classes count, including sched_ext."""

    NAME = "runqlen"
    TRACES = "run queue lengths"
    BREAKS_DOWN = False
    TIMES = False
    EXAMPLES = """\b
Examples:
  {name} -C 3 -d 10            one CPU, for 10 s
  {name} -O --per-cpu 1        how often tasks wait, each second and CPU

"""
    OPTIONS = (
        click.Option(["-O", "--runqocc"], is_flag=True, help="Report occupancy: how often tasks waited."),
        click.Option(["--per-cpu"], is_flag=True, help="A histogram for each CPU."),
        click.Option(
            ["-F", "--frequency"],
            type=click.IntRange(1, 10_000),
            default=99,
            show_default=True,
            help="Samples per second.",
        ),
    )

    def make(self) -> Tracer:
        filters = self.request.filters
        constants = {**_offsets(), "filtered": int(filters.choose_tasks)}
        return Tracer(self.NAME, filters, constants=constants, header="runqlen.h")

    def begin(self) -> None:
        self._before = self._samples()
        self.tracer.sample(self.request.options["frequency"])

    def report(self, seconds: float) -> Iterable[Section]:
        now = self._samples()
        cpus = [tuple(map(operator.sub, *counts)) for counts in zip(now, self._before, strict=True)]
        self._before = now
        if self.request.options["per_cpu"]:
            sections = [(_lengths(counts), {"cpu": cpu}) for cpu, counts in enumerate(cpus)]
        else:
            sections = [(_lengths(tuple(map(sum, zip(*cpus, strict=True)))), {})]
        for lengths, by in sections:
            if not lengths.count:
                continue
            yield (
                _occupancy(lengths, by)
                if self.request.options["runqocc"]
                else HistogramSection(self.NAME, lengths, by=by)
            )

    def _samples(self) -> list[tuple[int, ...]]:
        """For each CPU, how often each number of tasks waited."""
        return [tuple(cpu.samples) for cpu in self.tracer.per_cpu("counts", "struct runqlen_counts")[0]]


def _lengths(counts: tuple[int, ...]) -> LinearHistogram:
    return LinearHistogram("runqlen", counts)


def _occupancy(lengths: LinearHistogram, by: Mapping[str, int]) -> Table:
    percent = 100 * sum(lengths.counts[1:]) / lengths.count
    name = ", ".join(["runqocc", *(f"CPU {cpu:<3d}" for cpu in by.values())])
    return Table("runqocc", [{"percent": round(percent, 2), **by}], picture=f"{name}: {percent:6.2f}%")


def _offsets() -> dict[str, int]:
    rq, fair = (kernel_types.struct(name).members for name in ("rq", "cfs_rq"))
    if "rq" not in fair:
        raise KernelUnsupported(
            "cfs_rq.rq", "this kernel has no struct cfs_rq.rq", hint="boot a kernel with CONFIG_FAIR_GROUP_SCHED=y"
        )
    return {
        "cfs_rq_rq": fair["rq"].offset,
        "rq_nr_running": rq["nr_running"].offset,
    }
