# SPDX-License-Identifier: Apache-2.0
"""Long waits for a CPU, and who is to blame; see bpf/tracers/runqslower.bpf.c."""

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
    """Waits for a CPU that were longer than MIN, as they end, each with those who ran on that CPU meanwhile, the
    greediest first.
    """

    NAME = "runqslower"
    SUMMARY = "Long waits for a CPU, and who ran instead."
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
            help="Shorter waits are not shown.",
        ),
        click.Option(
            ["-n", "--culprits"], type=click.IntRange(0, 16), default=3, show_default=True, help="Show so many."
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
        record = self._ffi.from_buffer("struct slow_wait *", data)  # what it points to lives as long as it does
        wait = record[0]
        size = len(wait.culprits)
        order = [wait.culprits[(wait.head - 1 - n) % size] for n in range(min(wait.head, size))]
        ran: dict[tuple[int, str], int] = {}
        for culprit in order:
            if culprit.until > wait.since:
                who = (culprit.tid, comm(culprit.comm))
                ran[who] = ran.get(who, 0) + min(culprit.ran, culprit.until - wait.since)
        greediest = sorted(ran.items(), key=lambda item: -item[1])[: self.request.options["culprits"]]
        self._waits.append(
            {
                "at": datetime.now().strftime("%H:%M:%S"),
                "comm": comm(wait.comm),
                "tid": wait.tid,
                "pid": wait.tgid,
                "cpu": wait.cpu,
                "usecs": wait.waited // 1000,
                "culprits": [{"tid": tid, "comm": name, "usecs": ns // 1000} for (tid, name), ns in greediest],
            }
        )

    def _line(self, wait: dict[str, Any]) -> str:
        head = (
            "" if self._headed else f"{'TIME':<8} {'COMM':<15} {'TID':>7} {'CPU':>3} {'LAT(us)':>8}  RAN INSTEAD (us)\n"
        )
        self._headed = True
        who = f"{wait['at']:<8} {printable(wait['comm']):<15} {wait['tid']:>7} {wait['cpu']:>3} {wait['usecs']:>8}  "
        culprits = [f"{printable(c['comm'])} {c['tid']} ({c['usecs']})" for c in wait["culprits"]]
        blamed = _lines(culprits, _WIDTH - len(who))
        return head + who + f"\n{'':{len(who)}}".join(blamed)


def _lines(words: list[str], width: int) -> list[str]:
    """The words, as many on a line as there is room for, and one at least."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 < width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines
