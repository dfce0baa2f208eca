# SPDX-License-Identifier: Apache-2.0
"""Time on or off a CPU; see bpf/tracers/cpudist.bpf.c."""

import click

from .tool import HistogramTool


class TOOL(HistogramTool):
    """How long tasks keep a CPU from one switch to the next, or with -O how long they are off it."""

    NAME = "cpudist"
    SUMMARY = "How long tasks are on a CPU, or off it."
    TRACES = "on-CPU or off-CPU time"
    HISTOGRAMS = (("time", ""),)
    OPTIONS = (
        click.Option(["-O", "--offcpu"], is_flag=True, help="Time off the CPU, not on it."),
        click.Option(["-I", "--include-idle"], is_flag=True, help="The idle task, too."),
    )

    def constants(self) -> dict[str, int]:
        options = self.request.options
        return {"off": int(options["offcpu"]), "idle": int(options["include_idle"])}
