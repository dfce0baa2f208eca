# SPDX-License-Identifier: Apache-2.0
"""Draws the ratios to EEVDF with matplotlib, which only this module imports."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from . import figures
from .plan import AGAIN
from .summary import Summary
from .workloads import LOWER

_WIDTH, _ROW, _EDGES = 8.0, 0.28, 1.1
_COLOURS = {figures.BETTER: "#2e7d5b", figures.WORSE: "#b03a2e"}
_OTHER, _BAND = "#666666", "#e4e4e4"
#: Ratios that an axis may name, from wide axes to narrow ones.
_STEPS = (
    (0.001, 0.01, 0.1, 1, 10, 100, 1000),
    (0.1, 0.2, 0.5, 1, 2, 5, 10),
    (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2),
    (0.9, 0.95, 1, 1.05, 1.1),
    (0.98, 0.99, 1, 1.01, 1.02),
)


def draw(path: Path, summaries: Sequence[Summary]) -> None:
    """Draw the ratios of ``summaries`` that have one: a picture for each workload, below each other.

    The suffix of ``path`` selects the format. The grey band is how far EEVDF differs from itself.
    """
    compared = [one for one in summaries if one.ratio is not None]
    workloads = [(name, list(of)) for name, of in itertools.groupby(compared, lambda one: one.workload)]
    heights = [len(rows) * _ROW + _EDGES for _, rows in workloads]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(workloads), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (name, rows) in zip(all_axes, workloads, strict=True):
        axes.set_title(name, parse_math=False, loc="left", fontsize=10)  # a name may hold dollars
        _ratios(axes, rows)
    figure.savefig(path)


def _ratios(axes: Any, rows: Sequence[Summary]) -> None:
    for place, one in enumerate(rows):
        ratio = one.ratio or 1.0
        colour = _COLOURS.get(one.verdict or "", _OTHER)
        low, high = (ratio, ratio) if one.low is None or one.high is None else (one.low, one.high)
        if one.noise is not None:
            band = 1 / (1 + one.noise), 1 + one.noise
            axes.fill_betweenx([place - 0.5, place + 0.5], *band, color=_BAND, linewidth=0, zorder=0)
        axes.errorbar(
            ratio, place, xerr=[[ratio - low], [high - ratio]], fmt="o", color=colour, capsize=3, markersize=4
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(one) for one in rows], fontsize=8, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(_ticks(axes.get_xlim()))
    axes.set_xlabel("ratio to EEVDF of the same round, with its interval", fontsize=8)


def _label(one: Summary) -> str:
    arrow = "" if one.candidate == AGAIN else " (less is better)" if one.better == LOWER else " (more is better)"
    return f"{one.metric}: {one.candidate}{arrow}"


def _ticks(limits: tuple[float, float]) -> list[float]:
    """Round ratios within ``limits``: the coarsest that are at least three."""
    within: list[float] = []
    for steps in _STEPS:
        within = [step for step in steps if limits[0] <= step <= limits[1]]
        if len(within) >= 3:
            break
    return within
