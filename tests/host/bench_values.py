# SPDX-License-Identifier: Apache-2.0
"""What percentiles are, by their definition."""

from __future__ import annotations

#: The percentiles that our own loads print, in thousandths.
PERCENTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}


def nearest_rank(values: list[int], per_mille: int) -> int:
    """By the definition, one value after the other."""
    ordered = sorted(values)
    return next(v for v in ordered if 1000 * sum(other <= v for other in ordered) >= per_mille * len(ordered))
