# SPDX-License-Identifier: Apache-2.0
"""Biff, ghOSt's bare-bones FIFO policy. bpf/policies/biff.bpf.c holds its decisions."""

from __future__ import annotations

from ..policy import Option, Policy, duration_ns

BIFF = Policy(
    "biff",
    "One FIFO queue for the enclave; preempts after a slice when tasks wait",
    (Option("slice", "slice_ns", duration_ns, "50ms", "how long a task keeps a CPU while other tasks wait"),),
)
