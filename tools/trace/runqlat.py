# SPDX-License-Identifier: Apache-2.0
"""How long tasks wait for a CPU; see bpf/tracers/runqlat.bpf.c."""

from .tool import HistogramTool


class TOOL(HistogramTool):
    """From wakeup (or preemption) to running, for tasks of every scheduling class, sched_ext included."""

    NAME = "runqlat"
    SUMMARY = "How long tasks wait for a CPU."
    TRACES = "run queue latency"
    HISTOGRAMS = (("wait", ""),)
