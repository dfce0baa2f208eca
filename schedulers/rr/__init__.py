# SPDX-License-Identifier: Apache-2.0
"""Round robin. bpf/policies/rr.bpf.c holds its decisions."""

from __future__ import annotations

from ..policy import Option, Policy, duration_ns

RR = Policy(
    "rr",
    "Round robin: each task runs for one short slice at a time",
    (Option("slice", "slice_ns", duration_ns, "5ms", "how long a task runs before it goes to the tail"),),
)
