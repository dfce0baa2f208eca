# SPDX-License-Identifier: Apache-2.0
"""Long waits for a CPU, and the tasks that ran meanwhile; see bpf/tracers/runqslower.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from typing import Any

import click

from ...loaders import RingBuffer
from ..output import printable
from .report import Section, Table
from .tool import Tool
from .tracer import Tracer, comm, ffi

_WIDTH = 80


class TOOL(Tool):
    """Waits for a CPU that were longer than --min, printed as they end, each with the tasks that ran on that CPU
    meanwhile, longest first.
    """

    NAME = "runqslower"
    TRACES = "run queue latency that is too long"
    BREAKS_DOWN = False
    PLOTS = False
    OPTIONS = (
        click.Option(
            ["--min", "min_us"],
            type=click.IntRange(1),
            default=10_000,
            show_default=True,
            metavar="USECS",
            help="Omit shorter waits.",
        ),
        click.Option(
            ["-n", "--culprits"],
            type=click.IntRange(0, 16),
            default=3,
            show_default=True,
            help="Number of other tasks.",
        ),
    )

    def make(self) -> Tracer:
        limit = {"min_ns": self.request.options["min_us"] * 1000}
        return Tracer(self.NAME, self.request.filters, constants=limit, header="runqslower.h")

    def begin(self) -> None:
        self._ffi = ffi("runqslower.h")
        self._waits: list[dict[str, Any]] = []
        self._ring = self.tracer.keep(closing(RingBuffer(self.tracer.map("events"), self._receive)))
        self._headed = False

    def poll(self) -> Iterable[Section]:
        self._ring.consume()
        waits, self._waits = self._waits, []
        for wait in waits:
            yield Table("wait", [wait], picture=self._line(wait))

    def report(self, seconds: float) -> Iterable[Section]:
        return self.poll()

    def _receive(self, data: bytes) -> None:
        record = self._ffi.from_buffer("struct slow_wait *", data)  # must outlive wait, a view of it
        wait = record[0]
        size = len(wait.culprits)
        order = [wait.culprits[(wait.head - 1 - n) % size] for n in range(min(wait.head, size))]
        ran: dict[tuple[int, str], int] = {}
        for culprit in order:
            if culprit.until > wait.since:
                task = (culprit.tid, comm(culprit.comm))
                ran[task] = ran.get(task, 0) + min(culprit.ran, culprit.until - wait.since)
        longest = sorted(ran.items(), key=lambda item: -item[1])[: self.request.options["culprits"]]
        self._waits.append(
            {
                "at": datetime.now().strftime("%H:%M:%S"),
                "comm": comm(wait.comm),
                "tid": wait.tid,
                "pid": wait.tgid,
                "cpu": wait.cpu,
                "usecs": wait.waited // 1000,
                "culprits": [{"tid": tid, "comm": name, "usecs": ns // 1000} for (tid, name), ns in longest],
            }
        )

    def _line(self, wait: dict[str, Any]) -> str:
        head = (
            "" if self._headed else f"{'TIME':<8} {'COMM':<15} {'TID':>7} {'CPU':>3} {'LAT(us)':>8}  RAN INSTEAD (us)\n"
        )
        self._headed = True
        waiter = f"{wait['at']:<8} {printable(wait['comm']):<15} {wait['tid']:>7} {wait['cpu']:>3} {wait['usecs']:>8}  "
        culprits = [f"{printable(c['comm'])} {c['tid']} ({c['usecs']})" for c in wait["culprits"]]
        lines = _lines(culprits, _WIDTH - len(waiter))
        return head + waiter + f"\n{'':{len(waiter)}}".join(lines)


def _lines(words: list[str], width: int) -> list[str]:
    """Fill lines of ``width`` with words, at least one in each."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 < width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines
