# SPDX-License-Identifier: Apache-2.0
"""Who wakes whom; see bpf/tracers/wakers.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable

import click

from .counts import Counted
from .filters import By
from .report import Section, Table
from .tool import Tool
from .tracer import Tracer, comm


class TOOL(Tool):
    """Wakers, wakees and how often, the most frequent first. With a filter, both those that wake a matching task and
    those that one wakes. swapper/N is mostly an interrupt on an idle CPU.
    """

    NAME = "wakers"
    SUMMARY = "Who wakes whom, and how often."
    TRACES = "wakeups"
    BREAKS_DOWN = False
    PLOTS = False
    OPTIONS = (
        click.Option(["-P", "--pids"], is_flag=True, help="Add up the threads of each process."),
        click.Option(
            ["-n", "--top"], type=click.IntRange(1), default=20, show_default=True, help="So many rows; JSON has all."
        ),
    )

    def make(self) -> Tracer:
        by = By.PROCESS if self.request.options["pids"] else By.THREAD
        return Tracer(self.NAME, self.request.filters, by=by, header="wakers.h")

    def begin(self) -> None:
        self._counted = Counted()

    def report(self, seconds: float) -> Iterable[Section]:
        now = {
            (key.waker, comm(key.waker_comm), key.wakee, comm(key.wakee_comm)): count
            for key, count in self.tracer.hash("wakes", "struct wake_key", "u64").items()
        }
        rows = [
            {"waker": waker, "waker_comm": name, "wakee": wakee, "wakee_comm": wakee_name, "count": count}
            for (waker, name, wakee, wakee_name), count in self._counted.most(now)
        ]
        yield Table("wakeups", rows, top=self.request.options["top"])
