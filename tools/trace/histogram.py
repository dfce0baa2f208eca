# SPDX-License-Identifier: Apache-2.0
"""Histograms of times and of small numbers: the buckets of the BPF side, percentiles, and output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

_SCALE = 1024
_STARS, _NARROW_STARS = 40, 20
_NARROW_ROWS = 32
#: The width of one line of figures without its indent and the blanks between them; the line has 79 columns.
_FIGURES_WIDTH = 79 - 5 - 6 * 2

#: The percentiles under each histogram, by name.
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

UNITS = {1_000: "usecs", 1_000_000: "msecs"}


@dataclass(frozen=True)
class Row:
    """The ``count`` of values from ``low`` to ``high``, in whole units and inclusive."""

    low: int
    high: int
    count: int


class Distribution(Protocol):
    """A histogram that can be printed and drawn."""

    @property
    def unit(self) -> str:
        """The unit of its values."""
        ...

    @property
    def count(self) -> int:
        """How many values were counted."""
        ...

    def rows(self) -> list[Row]:
        """The rows from 0 up to the last one with a count."""
        ...

    def place(self, value: float) -> float:
        """The position of a value in ``rows()``: 2.0 is the middle of the third row."""
        ...

    def summary(self) -> dict[str, float]:
        """Percentiles, maximum and mean, in units."""
        ...

    def text(self) -> str:
        """The rows as bars, and the percentiles below."""
        ...


@dataclass(frozen=True)
class Histogram:
    """Counts by the buckets of bpf/tracers/trace.h; ``unit_ns`` is 1,000 or 1,000,000, sum and maximum are in ns."""

    unit_ns: int
    counts: tuple[int, ...]
    sum_ns: int
    max_ns: int

    @classmethod
    def empty(cls, unit_ns: int, buckets: int) -> Self:
        """A histogram without values."""
        return cls(unit_ns, (0,) * buckets, 0, 0)

    @property
    def count(self) -> int:
        """The number of times."""
        return sum(self.counts)

    @property
    def unit(self) -> str:
        """ "usecs" or "msecs"."""
        return UNITS[self.unit_ns]

    @property
    def mean(self) -> float:
        """The mean, in units; 0 without values."""
        return self.sum_ns / self.unit_ns / (self.count or 1)

    @property
    def max(self) -> float:
        """The maximum, in units."""
        return self.max_ns / self.unit_ns

    def since(self, before: Histogram) -> Histogram:
        """The values counted since ``before``; the maximum is exact only if it is the largest so far."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        highest = max((bucket for bucket, count in enumerate(counts) if count), default=None)
        edge = 0 if highest is None else edges(highest)[1] * self.unit_ns // _SCALE
        max_ns = self.max_ns if self.max_ns > before.max_ns else min(edge, self.max_ns)
        return Histogram(self.unit_ns, counts, self.sum_ns - before.sum_ns, max_ns)

    def percentile(self, share: float) -> float:
        """The time, in units, that a ``share`` of all times do not exceed; accurate to 1/8."""
        rank, seen = share * self.count, 0
        for bucket, count in enumerate(self.counts):
            if count and seen + count >= rank:
                low, high = edges(bucket)
                return min((low + (high - low) * (rank - seen) / count) / _SCALE, self.max)
            seen += count
        return self.max

    def rows(self) -> list[Row]:
        """A row for each power of two, from 0 up to the last one with a count."""
        counts: dict[int, int] = {}
        for bucket, count in enumerate(self.counts):
            if count:
                row = max((edges(bucket)[0] // _SCALE).bit_length() - 1, 0)
                counts[row] = counts.get(row, 0) + count
        last = max(counts, default=-1)
        return [Row(1 << n if n else 0, (2 << n) - 1, counts.get(n, 0)) for n in range(last + 1)]

    def place(self, value: float) -> float:
        """The position of a time in ``rows()``: 2.0 is the middle of the third row."""
        return math.log2(max(value, 1)) - 0.5

    def summary(self) -> dict[str, float]:
        """Percentiles, maximum and mean, in units."""
        values = {name: self.percentile(share) for name, share in PERCENTILES.items()}
        return {**values, "max": self.max, "avg": self.mean}

    def text(self) -> str:
        """The rows as bars, and the percentiles below."""
        figures = [f"{name} {_short(value)}" for name, value in self.summary().items()]
        figures.append(f"({self.count} in all)")
        lines = [figures] if sum(map(len, figures)) <= _FIGURES_WIDTH else [figures[:4], figures[4:]]
        return "\n".join([picture(self.rows(), self.unit), *("     " + "  ".join(line) for line in lines)])


@dataclass(frozen=True)
class LinearHistogram:
    """Counts of small whole numbers from 0 on, such as queue lengths."""

    unit: str
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def percentile(self, share: float) -> int:
        """The smallest number that a ``share`` of all values do not exceed."""
        rank = share * self.count
        for value, count in enumerate(self.counts):
            rank -= count
            if rank <= 0:
                return value
        return len(self.counts) - 1

    def rows(self) -> list[Row]:
        """A row for each number, from 0 up to the last one with a count."""
        last = max((value for value, count in enumerate(self.counts) if count), default=-1)
        return [Row(value, value, self.counts[value]) for value in range(last + 1)]

    def place(self, value: float) -> float:
        """The position of a number in ``rows()``."""
        return value

    def summary(self) -> dict[str, float]:
        """Percentiles, maximum and mean."""
        values: dict[str, float] = {name: self.percentile(share) for name, share in PERCENTILES.items()}
        mean = sum(value * count for value, count in enumerate(self.counts)) / (self.count or 1)
        return {**values, "max": max(len(self.rows()) - 1, 0), "avg": round(mean, 3)}

    def text(self) -> str:
        """The rows as bars, and the percentiles below."""
        figures = [*(f"{name} {value:g}" for name, value in self.summary().items()), f"({self.count} in all)"]
        return "\n".join([linear_picture(self.rows(), self.unit), "     " + "  ".join(figures)])


def edges(bucket: int) -> tuple[int, int]:
    """The lowest value of a bucket of bpf/tracers/buckets.bpf.h, and of the next one."""
    if bucket < 8:
        return bucket, bucket + 1
    power, step = bucket // 8 + 2, bucket % 8
    return 8 + step << power - 3, 9 + step << power - 3


def picture(rows: Iterable[Row], label: str) -> str:
    """The format of bcc's print_log2_hist(): a row for each power of two, and 40 stars for the largest count."""
    rows = list(rows)
    wide = len(rows) > _NARROW_ROWS
    stars, width = (_NARROW_STARS, 20) if wide else (_STARS, 10)
    maximum = max((row.count for row in rows), default=0)
    lines = [f"     {label:<{2 * width - 1}} : count     distribution"]
    lines += [
        f"{row.low:{width}d} -> {row.high:<{width}d} : {row.count:<8d} |{_stars(row.count, maximum, stars)}|"
        for row in rows
    ]
    return "\n".join(lines)


def linear_picture(rows: Iterable[Row], label: str) -> str:
    """The format of bcc's print_linear_hist(): a row for each value."""
    rows = list(rows)
    maximum = max((row.count for row in rows), default=0)
    lines = [f"     {label:<13} : count     distribution"]
    lines += [f"        {row.low:<10d} : {row.count:<8d} |{_stars(row.count, maximum, _STARS)}|" for row in rows]
    return "\n".join(lines)


def _stars(count: int, maximum: int, width: int) -> str:
    return ("*" * (width * count // maximum if maximum else 0)).ljust(width)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
