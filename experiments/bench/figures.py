# SPDX-License-Identifier: Apache-2.0
"""What can be said of measured values: medians, ratios of pairs, an interval of the median ratio, and verdicts."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

#: How many times the pairs are drawn again for an interval, and its level.
RESAMPLES, LEVEL = 2000, 0.95
#: Fewer pairs have no interval.
LEAST_PAIRS = 3

BETTER, WORSE, WITHIN_NOISE = "better", "worse", "within noise"


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest of ``values`` such that ``fraction`` of them are at or below it (nearest rank).

    quantile([1, 2, 3, 4], 0.5) == 2
    """
    # 0.07 * 100 is 7.000000000000001, the 8th value: rounding takes away what floating point has added.
    rank = math.ceil(round(fraction * len(values), 9))
    return sorted(values)[max(rank, 1) - 1]


def interval(ratios: Sequence[float], rng: random.Random) -> tuple[float, float] | None:
    """The bootstrap interval of the median of ``ratios``; None for fewer than LEAST_PAIRS.

    Its level is LEVEL for many pairs. It never leaves the range of ``ratios``, so for few pairs it is lower:
    75 % for 3, 94 % for 5.
    """
    if len(ratios) < LEAST_PAIRS:
        return None
    medians = [statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)]
    return quantile(medians, (1 - LEVEL) / 2), quantile(medians, (1 + LEVEL) / 2)


def noise(ratio: float, bounds: tuple[float, float] | None) -> float:
    """How far two equal measurements differ, from their ratio and its interval: 0.05 is 5 % either way."""
    return math.exp(max(abs(math.log(value)) for value in (ratio, *(bounds or ())))) - 1


def verdict(ratio: float, bounds: tuple[float, float] | None, noise: float, *, lower_is_better: bool) -> str:
    """Whether a candidate is better or worse than EEVDF.

    It is neither if the interval contains 1, or if EEVDF differs from itself by as much.
    """
    low, high = bounds or (ratio, ratio)
    if low <= 1 <= high or abs(math.log(ratio)) <= math.log1p(noise):
        return WITHIN_NOISE
    return BETTER if (ratio < 1) == lower_is_better else WORSE
