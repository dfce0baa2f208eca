# SPDX-License-Identifier: Apache-2.0
"""How long tasks wait for a CPU; see bpf/tracers/runqlat.bpf.c."""

from .tool import HistogramTool


class TOOL(HistogramTool):
    """A wait begins at a wakeup or a preemption, and ends when the task runs. Tasks of all scheduling classes count,
    including sched_ext.
    """

    NAME = "runqlat"
    TRACES = "run queue latency"
    HISTOGRAMS = (("wait", ""),)
