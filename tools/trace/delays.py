# SPDX-License-Identifier: Apache-2.0
"""What tasks wait for: the kernel's delay accounting beside what BPF measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from ...loaders.errors import GhostError, KernelUnsupported
from ...schedulers import pids
from ..output import table
from .counts import Counted
from .filters import By
from .histogram import Histogram
from .report import Section, Table
from .taskstats import Exits, TaskStats, is_complete
from .tool import Seconds, Tool
from .tracer import Tracer

#: The columns that are printed even if they are 0 for all.
_ALWAYS = ("tid", "comm", "cpu", "cpu_ms", "bpf", "bpf_ms")
#: What the kernel accounts for, each as <name>_count and <name>_delay_total in ns, where it has them.
_DELAYS = ("blkio", "swapin", "freepages", "thrashing", "compact", "wpcopy", "irq")
_WANTED = {"cpu_count", "cpu_delay_total", *(f"{name}_delay_total" for name in _DELAYS)}


class TOOL(Tool):
    """What the threads of each PID waited for since the last report: their waits for a CPU as the kernel counts them
    (taskstats, cpu) and as BPF does (bpf), then the kernel's other delays. Times are in ms. Filters choose among the
    threads of the PIDs, or where there are none, among all.
    """

    NAME = "delays"
    SUMMARY = "What tasks wait for: the kernel's accounting beside BPF's."
    TRACES = "delays"
    BREAKS_DOWN = False
    PLOTS = False
    SHOWS_BPF_IDS = False
    FILTERS = ("tid", "comm", "cgroup", "enclave")  # the kernel does not account by CPU
    EXAMPLES = """\b
Examples:
  {name} 4711 4712              two processes, until Ctrl-C
  {name} -i 1 -n 10 4711        a report a second, ten times
  {name} --cgroup app.slice     all threads of a cgroup

"""
    ARGUMENTS = (
        click.Option(["-i", "--interval"], type=Seconds(), help="Report every so many seconds."),
        click.Option(["-n", "--count"], type=click.IntRange(1), help="Report so many times."),
        click.Argument(["pids"], type=click.IntRange(1), nargs=-1, metavar="PID..."),
    )

    def make(self) -> Tracer:
        """runqlat's tracer does: a histogram a thread has its count and its sum."""
        pids.need_own_proc()
        self._pids: tuple[int, ...] = self.request.options["pids"]
        filters = self.request.filters
        if not self._pids and not filters.choose_tasks:
            raise click.UsageError("which processes? give PIDs, a filter such as --cgroup, or a command after --")
        for pid in self._pids:
            if not Path(f"/proc/{pid}").exists():
                raise GhostError(f"there is no process {pid}", hint="ps -e")
        self._all_matter = not dataclasses.replace(filters, command=False).choose_tasks
        if self._pids:
            filters = dataclasses.replace(filters, command=True)
        return Tracer("runqlat", filters, by=By.THREAD)

    def begin(self) -> None:
        self._stats = self.tracer.keep(TaskStats())
        self._kernel, self._bpf = Counted(), Counted()
        self._asked: dict[int, dict[str, int]] = {}  # what the kernel last said, by thread
        self._local: dict[int, int] = {}  # what a thread is called here, by the number that BPF has of it
        self._ended: set[int] = set()  # need not be asked until the next report
        self._exits = self._watch_exits()
        for tid in self._threads():
            self.tracer.mark(tid)
        # What a thread waited for until now is not to be reported, whoever will turn out to match.
        self._look(self._threads() if self._all_matter else _threads_of("*"))
        if not is_complete():
            click.echo("only waits for a CPU are accounted: sysctl kernel.task_delayacct=1 for the others", err=True)

    def _watch_exits(self) -> Exits | None:
        try:
            exits: Exits = self.tracer.keep(self._stats.exits())
            return exits
        except KernelUnsupported as error:
            click.echo(f"what threads wait for just before they end is not known: {error}", err=True)
            return None

    def poll(self) -> Iterable[Section]:
        """Asks the kernel often: where it does not tell of exits, what it said last of a thread stands."""
        self._ask(self._known())
        return ()

    def report(self, seconds: float) -> Iterable[Section]:
        kernel, bpf = self._look(self._known())
        rows = []
        for tid in sorted({tid for tid, _ in (*kernel, *bpf)}):
            row = {
                "tid": tid,
                "comm": self._comms.get(tid) or _comm(tid),
                "cpu": kernel.get((tid, "cpu_count"), 0) if tid in self._asked else None,
                "cpu_ms": _ms(kernel.get((tid, "cpu_delay_total"), 0)) if tid in self._asked else None,
                "bpf": bpf.get((tid, "count"), 0),
                "bpf_ms": _ms(bpf.get((tid, "ns"), 0)),
            }
            row |= {f"{name}_ms": _ms(kernel.get((tid, f"{name}_delay_total"), 0)) for name in _DELAYS}
            rows.append(row)
        yield Table("delays", rows, picture=_picture(rows))

    def _known(self) -> Iterable[int]:
        """Whom we know to matter before BPF has seen them wait."""
        return self._threads() if self._all_matter else ()

    def _look(self, known: Iterable[int]) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], int]]:
        """By how much each figure of each thread has grown: the kernel's, and ours."""
        names = self.tracer.names()
        self._ended.clear()
        waits = self._ask(known)
        self._comms = {self._local[owner]: name for owner, name in names.items() if owner in self._local}
        kernel = {(tid, name): value for tid, figures in self._asked.items() for name, value in figures.items()}
        bpf = {(owner, "count"): h.count for (_, owner), h in waits.items()}
        bpf |= {(owner, "ns"): h.sum_ns for (_, owner), h in waits.items()}
        return dict(self._kernel.most(kernel)), dict(self._bpf.most(bpf))

    def _ask(self, known: Iterable[int]) -> dict[tuple[int, int], Histogram]:
        """Asks the kernel of those who are ``known``, and of whom BPF has counted a wait; what that has counted.

        The kernel's word of exits comes first: whoever has ended by then is in BPF's histograms after that.
        """
        exits = self._exits.read() if self._exits else {}
        waits = self._by_local_tid(self.tracer.histograms())
        followed = {*known, *(owner for _, owner in waits)}
        for tid in followed - (self._ended - exits.keys()):
            if (figures := exits.get(tid) or self._stats.get(tid)) is not None:
                self._asked[tid] = {name: figures[name] for name in _WANTED & figures.keys()}
            else:
                self._ended.add(tid)
        if self._exits and self._exits.lost:
            self._exits.lost = False
            click.echo("threads ended too fast for the kernel to tell of them all", err=True)
        return waits

    def _by_local_tid(self, waits: dict[tuple[int, int], Histogram]) -> dict[tuple[int, int], Histogram]:
        """The same by what threads are called here; one that ended before it was asked for has no such number."""
        self._local |= pids.to_local({owner for _, owner in waits})
        return {(which, self._local[owner]): h for (which, owner), h in waits.items() if owner in self._local}

    def _threads(self) -> Iterator[int]:
        for pid in self._pids:
            yield from _threads_of(pid)


def _threads_of(pid: int | str) -> list[int]:
    """Its threads; of "*", all threads there are."""
    return sorted(int(path.name) for path in Path("/proc").glob(f"{pid}/task/[0-9]*"))


def _comm(tid: int) -> str:
    try:
        return Path(f"/proc/{tid}/comm").read_bytes()[:-1].decode(errors="replace")
    except OSError:
        return "?"


def _picture(rows: list[dict[str, Any]]) -> str:
    """The table, without the kinds of delay that nobody had."""
    shown = [name for name in (rows[0] if rows else ()) if name in _ALWAYS or any(row[name] for row in rows)]
    cells = [{name: "-" if row[name] is None else row[name] for name in shown} for row in rows]
    return table(cells) if cells else ""


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
