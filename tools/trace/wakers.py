# SPDX-License-Identifier: Apache-2.0
"""Wakers and the tasks that they wake; see bpf/tracers/wakers.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable

import click

from .counts import TOP, Counters
from .filters import By
from .report import Section, Table
from .tool import Tool
from .tracer import Tracer, comm


class TOOL(Tool):
    """Wakers and wakees, the most frequent pair first. A filter selects pairs in which either task matches. The waker
    swapper/N is mostly an interrupt on an idle CPU.
    """

    NAME = "wakers"
    TRACES = "wakeups"
    BREAKS_DOWN = False
    PLOTS = False
    OPTIONS = (
        click.Option(["-P", "--pids"], is_flag=True, help="Sum over the threads of each process."),
        TOP,
    )

    def make(self) -> Tracer:
        by = By.PROCESS if self.request.options["pids"] else By.THREAD
        return Tracer(self.NAME, self.request.filters, by=by, header="wakers.h")

    def begin(self) -> None:
        self._counters = Counters()

    def report(self, seconds: float) -> Iterable[Section]:
        now = {
            (key.waker, comm(key.waker_comm), key.wakee, comm(key.wakee_comm)): count
            for key, count in self.tracer.hash("counts", "struct wake_key", "u64").items()
        }
        rows = [
            {"waker": waker, "waker_comm": name, "wakee": wakee, "wakee_comm": wakee_name, "count": count}
            for (waker, name, wakee, wakee_name), count in self._counters.growth(now)
        ]
        yield Table("wakeups", rows, top=self.request.options["top"])
