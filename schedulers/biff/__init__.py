# SPDX-License-Identifier: Apache-2.0
"""Biff, ghOSt's bare-bones FIFO, and its BPF-only sisters. What each decides is told in its C file."""

from __future__ import annotations

from ..policy import Option, Policy, duration_ns

BIFF = Policy(
    "biff",
    "one FIFO for the enclave; preempts after a slice when somebody waits",
    (Option("slice", "slice_ns", duration_ns, "50ms", "how long a task keeps a CPU that somebody waits for"),),
)

RR = Policy(
    "rr",
    "round robin: everybody gets one short slice at a time",
    (Option("slice", "slice_ns", duration_ns, "5ms", "how long a task runs before it goes to the tail"),),
)

CFS_BPF = Policy(
    "cfs_bpf",
    "CPU time by nice value: the completely fair scheduler, in BPF",
    (
        Option("latency", "latency_ns", duration_ns, "6ms", "in which each of a CPU's tasks is to run once"),
        Option("min-granularity", "min_granularity_ns", duration_ns, "750us", "but none for less than this"),
    ),
    queues=True,
)
