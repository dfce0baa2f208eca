# SPDX-License-Identifier: Apache-2.0
"""Run lengths; see bpf/tracers/schedrun.bpf.c."""

import click

from .classes import ext_class
from .tool import HistogramTool

#: No scheduling class is there.
_NO_CLASS = 1


class TOOL(HistogramTool):
    """How long tasks keep a CPU, by whether they were made to leave it or went to sleep. After ghOSt's schedrun."""

    NAME = "schedrun"
    SUMMARY = "Run lengths: of tasks that were preempted, and that blocked."
    TRACES = "run lengths"
    HISTOGRAMS = (
        ("preempted", "Runtimes of preempted/yielded tasks:"),
        ("blocked", "Runtimes of tasks that blocked:"),
        ("all", "All task runtimes:"),
    )
    OPTIONS = (click.Option(["-g", "--ext", "ext"], is_flag=True, help="Only tasks of sched_ext."),)

    def constants(self) -> dict[str, int]:
        return {"only_class": (ext_class()["ext_class"] or _NO_CLASS) if self.request.options["ext"] else 0}

    def why_nothing(self) -> str:
        return "no sched_ext task left a CPU meanwhile" if self.request.options["ext"] else super().why_nothing()
