# SPDX-License-Identifier: Apache-2.0
"""Wakeup latency in its two parts; see bpf/tracers/schedlat.bpf.c."""

from .tool import HistogramTool


class TOOL(HistogramTool):
    """Prints the latencies from runnable to latched (a policy has put the task on a CPU's queue), from latched to
    running, and their sum. Tasks outside of enclaves count only in the sum. After ghOSt's schedlat.
    """

    NAME = "schedlat"
    TRACES = "runnable to latched to running"
    HISTOGRAMS = (
        ("runnable_to_latched", "Latency from Runnable to Latched:"),
        ("latched_to_run", "Latency from Latched to Run:"),
        ("runnable_to_run", "Latency from Runnable to Run:"),
    )
