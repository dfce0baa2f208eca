# SPDX-License-Identifier: Apache-2.0
"""What tasks wait for: the kernel's delay accounting, and waits for a CPU as BPF measures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from ...loaders import pid_namespace
from ...loaders.errors import GhostError, KernelUnsupported
from ...schedulers import pids
from ..output import table
from .counts import Counters
from .filters import By
from .histogram import Histogram
from .report import Section, Table
from .taskstats import Exits, TaskStats, is_complete
from .tool import Seconds, Tool
from .tracer import Tracer

#: Columns that are printed even if all their values are 0.
_ALWAYS = ("tid", "comm", "cpu", "cpu_ms", "bpf", "bpf_ms")
#: Delays that the kernel accounts, as <name>_count and <name>_delay_total in ns; some kernels lack some of them.
_DELAYS = ("blkio", "swapin", "freepages", "thrashing", "compact", "wpcopy", "irq")
_FIELDS = {"cpu_count", "cpu_delay_total", *(f"{name}_delay_total" for name in _DELAYS)}


class TOOL(Tool):
    """What the threads of each PID waited for since the last report: waits for a CPU as the kernel counts them
    (taskstats; columns cpu) and as BPF does (columns bpf), and the kernel's other delays. Times are in ms. Filters
    select among the threads of the PIDs, or, without PIDs, among all threads.
    """

    NAME = "delays"
    TRACES = "delays"
    BREAKS_DOWN = False
    PLOTS = False
    SHOWS_BPF_IDS = False
    FILTERS = ("tid", "comm", "cgroup", "enclave")  # the kernel does not account by CPU
    EXAMPLES = """\b
Examples:
  {name} 4711 4712              two processes, until Ctrl-C
  {name} -i 1 -n 10 4711        a report each second, 10 times
  {name} --cgroup app.slice     all threads of a cgroup

"""
    ARGUMENTS = (
        click.Option(["-i", "--interval"], type=Seconds(), help="Seconds between reports."),
        click.Option(["-n", "--count"], type=click.IntRange(1), help="Number of reports."),
        click.Argument(["pids"], type=click.IntRange(1), nargs=-1, metavar="PID..."),
    )

    def make(self) -> Tracer:
        """runqlat's tracer: a thread's histogram has the count and the sum of its waits."""
        pid_namespace.need_own_proc()
        self._pids: tuple[int, ...] = self.request.options["pids"]
        filters = self.request.filters
        if not self._pids and not filters.choose_tasks:
            raise click.UsageError("no processes selected: give PIDs, a filter such as --cgroup, or a command after --")
        for pid in self._pids:
            if not Path(f"/proc/{pid}").exists():
                raise GhostError(f"there is no process {pid}", hint="ps -e lists them")
        self._follows_all = not dataclasses.replace(filters, command=False).choose_tasks
        if self._pids:
            filters = dataclasses.replace(filters, command=True)
        return Tracer("runqlat", filters, by=By.THREAD)

    def begin(self) -> None:
        self._stats = self.tracer.keep(TaskStats())
        self._kernel, self._bpf = Counters(), Counters()
        self._stats_of: dict[int, dict[str, int]] = {}  # the kernel's latest figures, by tid
        self._local: dict[int, int] = {}  # tids in this pid namespace, by tids in the initial one
        self._ended: set[int] = set()  # tids to skip until the next report
        self._exits = self._watch_exits()
        for tid in self._threads():
            self.tracer.mark(tid)
        # Read the current figures of all threads that may match: only what is added to them is reported.
        self._update(self._threads() if self._follows_all else _threads_of("*"))
        if not is_complete():
            click.echo("only waits for a CPU are accounted; for all delays: sysctl kernel.task_delayacct=1", err=True)

    def _watch_exits(self) -> Exits | None:
        try:
            exits: Exits = self.tracer.keep(self._stats.exits())
            return exits
        except KernelUnsupported as error:
            click.echo(f"waits shortly before a thread ends are missing: {error}", err=True)
            return None

    def poll(self) -> Iterable[Section]:
        """Reads the kernel's figures often: without its exit events, the last ones of an ended thread count."""
        self._read(self._known())
        return ()

    def report(self, seconds: float) -> Iterable[Section]:
        kernel, bpf = self._update(self._known())
        rows = []
        for tid in sorted({tid for tid, _ in (*kernel, *bpf)}):
            row = {
                "tid": tid,
                "comm": self._comms.get(tid) or _comm(tid),
                "cpu": kernel.get((tid, "cpu_count"), 0) if tid in self._stats_of else None,
                "cpu_ms": _ms(kernel.get((tid, "cpu_delay_total"), 0)) if tid in self._stats_of else None,
                "bpf": bpf.get((tid, "count"), 0),
                "bpf_ms": _ms(bpf.get((tid, "ns"), 0)),
            }
            row |= {f"{name}_ms": _ms(kernel.get((tid, f"{name}_delay_total"), 0)) for name in _DELAYS}
            rows.append(row)
        yield Table("delays", rows, picture=_picture(rows))

    def _known(self) -> Iterable[int]:
        """Threads that are selected even if BPF has not seen them wait."""
        return self._threads() if self._follows_all else ()

    def _update(self, known: Iterable[int]) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], int]]:
        """The growth of each figure of each thread: the kernel's and BPF's."""
        names = self.tracer.names()
        self._ended.clear()
        waits = self._read(known)
        self._comms = {self._local[owner]: name for owner, name in names.items() if owner in self._local}
        kernel = {(tid, name): value for tid, figures in self._stats_of.items() for name, value in figures.items()}
        bpf = {(owner, "count"): h.count for (_, owner), h in waits.items()}
        bpf |= {(owner, "ns"): h.sum_ns for (_, owner), h in waits.items()}
        return dict(self._kernel.growth(kernel)), dict(self._bpf.growth(bpf))

    def _read(self, known: Iterable[int]) -> dict[tuple[int, int], Histogram]:
        """Read the kernel's figures of ``known`` threads and of those that BPF saw wait; returns BPF's histograms.

        Exit events are read first: BPF's histograms, read afterwards, have the waits of all threads that have ended.
        """
        exits = self._exits.read() if self._exits else {}
        waits = self._by_local_tid(self.tracer.histograms())
        followed = {*known, *(owner for _, owner in waits)}
        for tid in followed - (self._ended - exits.keys()):
            if (figures := exits.get(tid) or self._stats.get(tid)) is not None:
                self._stats_of[tid] = {name: figures[name] for name in _FIELDS & figures.keys()}
            else:
                self._ended.add(tid)
        if self._exits and self._exits.lost:
            self._exits.lost = False
            click.echo("threads ended too fast: some of the kernel's exit events are lost", err=True)
        return waits

    def _by_local_tid(self, waits: dict[tuple[int, int], Histogram]) -> dict[tuple[int, int], Histogram]:
        """``waits`` by tid in this pid namespace, without threads that ended before their tid was looked up."""
        self._local |= pids.to_local({owner for _, owner in waits})
        return {(which, self._local[owner]): h for (which, owner), h in waits.items() if owner in self._local}

    def _threads(self) -> Iterator[int]:
        for pid in self._pids:
            yield from _threads_of(pid)


def _threads_of(pid: int | str) -> list[int]:
    """The threads of process ``pid``; with "*", of all processes."""
    return sorted(int(path.name) for path in Path("/proc").glob(f"{pid}/task/[0-9]*"))


def _comm(tid: int) -> str:
    try:
        return Path(f"/proc/{tid}/comm").read_bytes()[:-1].decode(errors="replace")
    except OSError:
        return "?"


def _picture(rows: list[dict[str, Any]]) -> str:
    """The table, without delays that no thread had."""
    shown = [name for name in (rows[0] if rows else ()) if name in _ALWAYS or any(row[name] for row in rows)]
    cells = [{name: "-" if row[name] is None else row[name] for name in shown} for row in rows]
    return table(cells) if cells else ""


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
