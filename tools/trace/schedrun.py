# SPDX-License-Identifier: Apache-2.0
"""Run lengths; see bpf/tracers/schedrun.bpf.c."""

import click

from .classes import ext_class
from .tool import HistogramTool

#: No scheduling class has this address.
_NO_CLASS = 1


class TOOL(HistogramTool):
    """A run ends when the task is preempted or yields, or when it blocks; each kind has its histogram, and so have all
    runs. After ghOSt's schedrun.
    """

    NAME = "schedrun"
    TRACES = "run lengths"
    HISTOGRAMS = (
        ("preempted", "Runtimes of preempted/yielded tasks:"),
        ("blocked", "Runtimes of tasks that blocked:"),
        ("all", "All task runtimes:"),
    )
    OPTIONS = (click.Option(["-g", "--ext", "ext"], is_flag=True, help="Trace tasks of sched_ext only."),)

    def constants(self) -> dict[str, int]:
        return {"only_class": (ext_class()["ext_class"] or _NO_CLASS) if self.request.options["ext"] else 0}

    def why_nothing(self) -> str:
        return "no sched_ext task left a CPU" if self.request.options["ext"] else super().why_nothing()
