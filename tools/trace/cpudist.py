# SPDX-License-Identifier: Apache-2.0
"""Time on or off a CPU; see bpf/tracers/cpudist.bpf.c."""

import click

from .tool import HistogramTool


class TOOL(HistogramTool):
    """A time lasts from one switch of a task to the next: on a CPU or, with -O, off it."""

    NAME = "cpudist"
    TRACES = "on-CPU or off-CPU time"
    HISTOGRAMS = (("time", ""),)
    OPTIONS = (
        click.Option(["-O", "--offcpu"], is_flag=True, help="Report the time off the CPU instead."),
        click.Option(["-I", "--include-idle"], is_flag=True, help="Include the idle task."),
    )

    def constants(self) -> dict[str, int]:
        options = self.request.options
        return {"off": int(options["offcpu"]), "idle": int(options["include_idle"])}
