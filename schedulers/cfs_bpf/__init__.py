# SPDX-License-Identifier: Apache-2.0
"""The completely fair scheduler, in BPF. bpf/policies/cfs_bpf.bpf.c holds its decisions."""

from __future__ import annotations

from ..policy import Option, Policy, duration_ns

CFS_BPF = Policy(
    "cfs_bpf",
    "CPU time by nice value: the completely fair scheduler, in BPF",
    (
        Option("latency", "latency_ns", duration_ns, "6ms", "the period in which each task of a CPU runs once"),
        Option("min-granularity", "min_granularity_ns", duration_ns, "750us", "the shortest slice of a task"),
    ),
    queues=True,
    weighs_cgroups=True,
)
