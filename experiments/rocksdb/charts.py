# SPDX-License-Identifier: Apache-2.0
"""Draws results with matplotlib, which only this module imports; each plot is returned as SVG for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

#: Colours that differ for colour-blind readers, too, each with a mark of its own.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"))
#: So small that text stays readable on a narrow screen, where a plot is as wide as the page.
_SIZE = (4.6, 3.3)

#: Room for titles, labels, and seven digits on the left.
_MARGINS = {"left": 0.16, "right": 0.97, "bottom": 0.135, "top": 0.92}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lines:
    """A plot of ``points`` by name; ``limit`` is a horizontal line with its label."""

    title: str
    x: str
    y: str
    points: Mapping[str, Points]
    limit: tuple[float, str] | None = None
    log_y: bool = False
    log_x: bool = False
    top: float | None = None
    marks: bool = True


def svg(lines: Lines) -> str:
    """The plot as an element for a page."""
    # Text stays text, which is smaller than its outlines, and faster.
    with matplotlib.rc_context(
        {"svg.hashsalt": lines.title, "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9}
    ):
        figure = Figure(figsize=_SIZE)
        # A layout that matplotlib finds takes as long as the drawing itself.
        figure.subplots_adjust(**_MARGINS)
        _draw(figure.subplots(), lines)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Several plots are in one page: their elements need ids that differ.
    prefix = re.sub(r"\W", "", lines.title)
    drawn = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", drawn)
    return re.sub(r'^<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", drawn, count=1)


def _draw(axes: Axes, lines: Lines) -> None:
    axes.set_title(lines.title, loc="left", parse_math=False)
    for n, (name, points) in enumerate(lines.points.items()):
        colour, mark = _STYLES[n % len(_STYLES)]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            linewidth=1.2,
            marker=mark if lines.marks else None,
            markersize=3,
            label=f" {name}",  # matplotlib leaves out a label that begins with an underscore
        )
    if lines.limit is not None:
        axes.axhline(lines.limit[0], color="#666666", linewidth=0.8, linestyle="--")
        axes.annotate(lines.limit[1], (0, lines.limit[0]), xycoords=("axes fraction", "data"), xytext=(3, 2),
                      textcoords="offset points", fontsize=7, color="#444444")  # fmt: skip
    axes.set_xlabel(lines.x)
    axes.set_ylabel(lines.y)
    if lines.log_y:
        axes.set_yscale("log")
    if lines.log_x:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_tick_params(labelsize=7)
    if not lines.log_y:
        axes.set_ylim(0, lines.top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for text in axes.legend(fontsize=7, framealpha=0.8).get_texts():
        text.set_parse_math(False)
