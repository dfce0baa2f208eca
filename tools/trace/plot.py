# SPDX-License-Identifier: Apache-2.0
"""Draws histograms with matplotlib, which only this module imports: bars for one report, a heat map for several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .histogram import Distribution, Row
from .report import HistogramSection

#: The maximum number of histograms in a picture: those with the most values.
MOST = 12
_LABELS = 40
_WIDTH, _HEIGHT = 8.0, 3.4
_COLOUR, _MARK = "#3b6ea5", "#b03a2e"

#: Reports, each with its length in seconds.
Reports = Sequence[tuple[float, Sequence[HistogramSection]]]


def draw(path: Path, tool: str, reports: Reports) -> None:
    """Draw ``reports``, which have at least one histogram, to ``path``, the suffix of which selects the format."""
    series = _series(reports)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(series)), layout="constrained")
    for axes, (label, histograms) in zip(figure.subplots(len(series), squeeze=False)[:, 0], series, strict=True):
        axes.set_title(f"{tool}: {label}", parse_math=False)  # a name may hold dollars
        shown = [h for h in histograms if h is not None and h.count]
        if len(reports) == 1:
            _bars(axes, shown[0])
        else:
            _heat(axes, [seconds for seconds, _ in reports], histograms, shown)
    figure.savefig(path)


def _series(reports: Reports) -> list[tuple[str, list[Distribution | None]]]:
    """Each histogram in all reports (None in a report without it), those with the most values first."""
    series: dict[str, list[Distribution | None]] = {}
    for number, (_, sections) in enumerate(reports):
        for section in sections:
            label = " ".join(part for part in (section.name, section.label) if part)
            series.setdefault(label, [None] * len(reports))[number] = section.histogram
    busiest = sorted(series.items(), key=lambda item: -sum(h.count for h in item[1] if h))
    return busiest[:MOST]


def _bars(axes: Any, histogram: Distribution) -> None:
    rows = histogram.rows()
    axes.bar(range(len(rows)), [row.count for row in rows], width=0.9, color=_COLOUR)
    axes.set_xticks(*_ticks(rows))
    axes.set_xlabel(f"{histogram.unit}, from")
    axes.set_ylabel("count")
    top = max(row.count for row in rows)
    for name, value in histogram.summary().items():
        if name.startswith("p"):
            axes.axvline(histogram.place(value), color=_MARK, linewidth=0.8)
            axes.text(histogram.place(value), top, f" {name}", color=_MARK, fontsize=7, rotation=90, va="top")


def _heat(
    axes: Any, seconds: Sequence[float], histograms: Sequence[Distribution | None], shown: list[Distribution]
) -> None:
    rows = max((h.rows() for h in shown), key=len)
    height = len(rows)
    columns = [_column(h, height) for h in histograms]
    edges = [sum(seconds[:n]) for n in range(len(seconds) + 1)]
    cells = [[column[row] or math.nan for column in columns] for row in range(height)]
    mesh = axes.pcolormesh(edges, range(height + 1), cells, norm=LogNorm(vmin=1), cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label="count")
    axes.set_yticks(*_ticks(rows))
    axes.set_xlabel("seconds")
    axes.set_ylabel(shown[0].unit)


def _column(histogram: Distribution | None, height: int) -> list[int]:
    counts = [row.count for row in histogram.rows()] if histogram else []
    return counts + [0] * (height - len(counts))


def _ticks(rows: Sequence[Row]) -> tuple[range, list[str]]:
    """Positions and texts of the labels: for up to _LABELS rows."""
    step = 1 + len(rows) // _LABELS
    return range(0, len(rows), step), [_short(row.low) for row in rows[::step]]


def _short(value: int) -> str:
    for size, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)
