# SPDX-License-Identifier: Apache-2.0
"""CPU time by scheduling class; see bpf/tracers/schedclasstop.bpf.c."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable

from .classes import ext_class
from .report import Section, Table
from .tool import Tool
from .tracer import Tracer

#: Names and letters in the order of enum sched_class_id, and the order in which they are drawn.
_CLASSES = (
    ("CFS", "c"),
    ("FIFO", "f"),
    ("RR", "r"),
    ("BATCH", "b"),
    ("IDLE_TASK", "."),
    ("SCHED_IDLE", "i"),
    ("DEADLINE", "d"),
    ("STOP", "s"),
    ("EXT", "e"),
)
_DRAWN = (7, 6, 1, 2, 0, 3, 5, 8, 4)
_WIDTH = 72
#: Samples find the tasks that run when the trace begins.
_HERTZ = 100


class TOOL(Tool):
    """The class is the one in which a task runs, whatever its policy is. After ghOSt's schedclasstop."""

    NAME = "schedclasstop"
    TRACES = "CPU time by scheduling class"
    BREAKS_DOWN = False
    PLOTS = False

    def make(self) -> Tracer:
        return Tracer(self.NAME, self.request.filters, constants=ext_class(), header="schedclasstop.h")

    def begin(self) -> None:
        self._before: list[list[int]] | None = None
        self.tracer.sample(_HERTZ)

    def report(self, seconds: float) -> Iterable[Section]:
        now = self._times()
        before = self._before or [[0] * len(_CLASSES) for _ in now]
        self._before = now
        # A time decreases if the task that was running in the previous report has changed its class since.
        spent = [[max(n - b, 0) for n, b in zip(*cpu, strict=True)] for cpu in zip(now, before, strict=True)]
        rows = [
            {"cpu": cpu, "class": _CLASSES[index][0], "cpu_seconds": round(ns / 1e9, 6)}
            for cpu, times in enumerate(spent)
            for index, ns in enumerate(times)
            if ns
        ]
        yield Table("class", rows, picture=_picture(spent, seconds))

    def _times(self) -> list[list[int]]:
        """The ns of each class for each CPU, including the running task's time so far."""
        by_cpu = []
        for cpu in self.tracer.per_cpu("times", "struct class_time")[0]:
            times = list(cpu.ns)
            if cpu.since and cpu.current < len(times):
                times[cpu.current] += max(time.monotonic_ns() - cpu.since, 0)
            by_cpu.append(times)
        return by_cpu


def _picture(spent: list[list[int]], seconds: float) -> str:
    width = min(_WIDTH, shutil.get_terminal_size().columns) - 6
    per_char = max(max(map(sum, spent), default=0) // width, 1)
    lines = ["CPU", "----|---"]
    for cpu, times in enumerate(spent):
        if any(times):
            bar = "".join(_CLASSES[index][1] * round(times[index] / per_char) for index in _DRAWN)
            lines.append(f"{cpu:3d} | {bar[:width]}")
    total = sum(map(sum, spent)) / 1e9
    head = f"Total: {sum(map(any, spent))} cpus over {seconds:.6f} seconds: {total:.6f} cpu-sec"
    lines += ["", head, "-" * len(head)]
    for index in _DRAWN:
        name, letter = _CLASSES[index]
        if ns := sum(times[index] for times in spent):
            share = ns / 1e9 / (total or 1)
            lines.append(f"{name:<11}({letter}): {ns / 1e9:20.6f} cpu-seconds ({share:.6f})")
    return "\n".join(lines)
