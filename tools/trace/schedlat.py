# SPDX-License-Identifier: Apache-2.0
"""Wakeup latency in its two halves; see bpf/tracers/schedlat.bpf.c."""

from .tool import HistogramTool


class TOOL(HistogramTool):
    """Runnable, then latched (a policy put the task on a CPU's queue), then running. Tasks of no enclave count only
    in the whole wait. After ghOSt's schedlat.
    """

    NAME = "schedlat"
    SUMMARY = "Wakeup latency: until the policy decides, and until the task runs."
    TRACES = "runnable to latched to running"
    HISTOGRAMS = (
        ("runnable_to_latched", "Latency from Runnable to Latched:"),
        ("latched_to_run", "Latency from Latched to Run:"),
        ("runnable_to_run", "Latency from Runnable to Run:"),
    )
