# SPDX-License-Identifier: Apache-2.0
"""Run queue lengths; see bpf/tracers/runqlen.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

from ...loaders import Btf, KernelUnsupported
from .report import LinearSection, Section, Table
from .tool import Tool
from .tracer import Tracer


class TOOL(Tool):
    """How many tasks wait on each CPU, by samples: tasks of every class, those of sched_ext included."""

    NAME = "runqlen"
    SUMMARY = "How many tasks wait on each CPU, by samples."
    TRACES = "run queue lengths"
    BREAKS_DOWN = False
    PLOTS = False
    FILTERS = False  # a queue is a CPU's, whoever waits in it
    EXAMPLES = """\b
Examples:
  {name} -C 3 -d 10            ten seconds of one CPU
  {name} -O --per-cpu 1        how much of each second somebody waited

"""
    OPTIONS = (
        click.Option(["-C", "--cpu"], type=click.IntRange(0), metavar="CPU", help="Only this CPU."),
        click.Option(["-O", "--runqocc"], is_flag=True, help="Occupancy: how often anybody waited."),
        click.Option(["--per-cpu"], is_flag=True, help="A histogram for each CPU."),
        click.Option(["-F", "--frequency"], type=click.IntRange(1, 10_000), default=99, show_default=True, help="Hz."),
    )

    def make(self) -> Tracer:
        return Tracer(self.NAME, self.request.filters, constants=_offsets(), header="runqlen.h")

    def begin(self) -> None:
        self._before: list[list[int]] = []
        self.tracer.sample(self.request.options["frequency"])

    def report(self, seconds: float) -> Iterable[Section]:
        now = [list(cpu.samples) for cpu in self.tracer.per_cpu("counts", "struct runqlen_counts")[0]]
        before = self._before or [[0] * len(cpu) for cpu in now]
        self._before = now
        cpus = {
            number: _cut([n - b for n, b in zip(*counts, strict=True)])
            for number, counts in enumerate(zip(now, before, strict=True))
        }
        whole = _cut([sum(column) for column in zip(*(_wide(c) for c in cpus.values()), strict=True)])
        shown = {number: counts for number, counts in cpus.items() if counts} if self.request.options["per_cpu"] else {}
        if self.request.options["runqocc"]:
            yield from _occupancy(dict(shown.items()) or {None: whole})
        elif shown:
            for number, counts in shown.items():
                yield LinearSection("runqlen", "runqlen", counts, {"cpu": number})
        else:
            yield LinearSection("runqlen", "runqlen", whole)


def _offsets() -> dict[str, int]:
    btf = Btf.kernel()
    rq = btf.members(btf.struct_id("rq"))
    fair = btf.members(btf.struct_id("cfs_rq"))
    if "rq" not in fair:
        raise KernelUnsupported("cfs_rq.rq", "this kernel's run queues cannot be found: no CONFIG_FAIR_GROUP_SCHED")
    return {
        "cfs_rq_rq": fair["rq"].offset,
        "rq_nr_running": rq["nr_running"].offset,
    }


def _occupancy(samples: Mapping[int | None, list[int]]) -> Iterable[Section]:
    for cpu, counts in samples.items():
        if not counts:
            continue
        percent = 100 * sum(counts[1:]) / sum(counts)
        name = "runqocc" if cpu is None else f"runqocc, CPU {cpu:<3d}"
        row = {"percent": round(percent, 2), **({} if cpu is None else {"cpu": cpu})}
        yield Table("runqocc", [row], picture=f"{name}: {percent:6.2f}%")


def _wide(counts: list[int], width: int = 128) -> list[int]:
    return counts + [0] * (width - len(counts))


def _cut(counts: list[int]) -> list[int]:
    """Without the zeros at the end."""
    last = max((index for index, count in enumerate(counts) if count), default=-1)
    return counts[: last + 1]
