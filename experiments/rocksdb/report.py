# SPDX-License-Identifier: Apache-2.0
"""The report of results: one HTML page that needs no other file, for wide and narrow screens."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..bench.noise import LIMIT
from . import charts, tables
from .cli_options import scale_line
from .options import SATURATED_NS, option_lines
from .store import Results, is_over, saturation
from .tables import time_in_words

_STYLE = """\
:root{color-scheme:light}
body{font:15px/1.45 system-ui,sans-serif;color:#1c2126;margin:0 auto;padding:16px;max-width:1240px}
h1{font-size:22px;margin:8px 0}h2{font-size:18px;margin:28px 0 8px;border-bottom:1px solid #d5dade}
h3{font-size:15px;margin:18px 0 6px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 14px;margin:0}
dt{color:#5a646e}dd{margin:0;overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:14px}
figure{margin:0;border:1px solid #e3e7ea;border-radius:4px;padding:6px}figure svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:2px 9px;text-align:right;border-bottom:1px solid #eceff1}
th:first-child,td:first-child{text-align:left}
th{position:sticky;top:0;background:#f4f6f7}
tr.over td{color:#9a3412}code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}
.bad{color:#9a3412}details>summary{cursor:pointer;margin:8px 0}
"""
#: The quantiles of a tail plot: its axis is 1 - fraction, so that each nine takes as much room.
_LAST = 0.9999


def page(sections: Sequence[tuple[str, str]]) -> str:
    """The page with all ``sections``, each with the name of its experiment."""
    title = "ghostbpf: " + ", ".join(dict.fromkeys(name for name, _ in sections))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            *(section for _, section in sections),
            "</body></html>\n",
        ]
    )


def sections(results: Results) -> Iterator[str]:
    """The parts of the page for a sweep."""
    run = results.run
    measured = [name for name in run["candidates"] if results.of(name)]
    yield f"<h2>{text(run['sweep'])}</h2>"
    yield _facts(results)
    if not measured:
        yield '<p class="bad">Nothing was measured.</p>'
        return
    yield f"<h3>Saturation</h3><ul>{''.join(f'<li>{text(line)}</li>' for line in saturation(results))}</ul>"
    yield plots(_plots(results, measured))
    for name in measured:
        yield f"<h3>{text(name)}: {text(run['candidates'][name])}</h3>"
        yield _table(results, name)
    yield "<details><summary>Options</summary>"
    for name, options in run["options"].items():
        for application, values in options.items():
            if values is not None:
                lines = "<br>".join(map(text, option_lines(values)))
                yield f"<h3>{text(name)}: {application}</h3><p><code>{lines}</code></p>"
    yield "</details>"


def plots(drawn: Iterable[charts.Lines]) -> str:
    """Plots side by side, as many as the page is wide."""
    figures = (f'<figure aria-label="{text(lines.title)}">{charts.svg(lines)}</figure>' for lines in drawn)
    return f'<div class="plots">{"".join(figures)}</div>'


def plots_of(page: str) -> Iterator[tuple[str, str]]:
    """The plots of a page: title, and SVG."""
    for match in re.finditer(r'<figure aria-label="([^"]*)">(.*?)</figure>', page, re.DOTALL):
        yield html.unescape(match[1]), match[2]


def text(text: object) -> str:
    """Text for the page."""
    return html.escape(str(text))


def _facts(results: Results) -> str:
    run = results.run
    cells = [cell for name in run["candidates"] for cell in results.of(name)]
    late = max((cell["rocksdb"]["generator"]["lateness"].get("p99", 0) for cell in cells), default=0)
    busy = max((tables.cpu_share(cell["rocksdb"]) for cell in cells), default=0)
    found = {
        "time scale": text(scale_line(run["time_scale"])),
        "cells": f"{len(cells)} of {len(run['plan'])}",
        "noise": noise(cells),
        "load generator": f"sent 99 % of the requests within {time_in_words(late)} of their times, in the worst cell, "
        f"and used at most {100 * busy:.0f} % of a CPU",
    }
    failed = "".join(
        f'<p class="bad">{text(name)} failed at {row["throughput"]:,} requests/s: {text(row["reason"])}</p>'
        for name, row in results.failures.items()
    )
    return f"{facts(run, found)}{failed}"


def noise(cells: Sequence[Mapping[str, Any]]) -> str:
    """In how many cells other processes disturbed the measurement."""
    noisy = sum(cell["noisy"] for cell in cells)
    return f"in {noisy} of {len(cells)} cells other processes used more than {LIMIT:g} CPU"


def facts(run: Mapping[str, Any], more: Mapping[str, str]) -> str:
    """A list of where results come from, and ``more``."""
    listed = {
        "command": f"<code>{text(run.get('command', '?'))}</code>",
        "date": text(run.get("date", "?")),
        "kernel": text(f"{run.get('kernel', '?')} ({run.get('machine', '?')})"),
        "CPU": text(f"{run.get('cpu_model', '?')}; CPUs {run['cpus']}"),
        **more,
        "version": text(f"ghostbpf {run.get('version', '?')}"),
    }
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in listed.items())}</dl>"


def _plots(results: Results, names: Sequence[str]) -> Iterator[charts.Lines]:
    run, scale = results.run, results.run["time_scale"]
    unit = "requests/s" if scale == 1 else f"requests/s, times {scale:g}"
    limit = (SATURATED_NS * scale / 1000, f"saturated: {time_in_words(SATURATED_NS * scale)}")
    for key, share in (("p99", "99 %"), ("p99.9", "99.9 %"), ("p50", "50 %")):
        points = {name: _latencies(results, name, "all", key) for name in names}
        title = f"{run['sweep']}: latency of {share} of the requests"
        yield charts.Lines(title, unit, f"{key}, us", points, limit if key == "p99" else None, log_y=True)
    if any(cell["antagonist"] is not None for name in names for cell in results.of(name)):
        shares = {
            name: [
                (cell["throughput"], 100 * tables.total_share(cell["antagonist"]))
                for cell in results.of(name)
                if cell["antagonist"] is not None
            ]
            for name in names
        }
        yield charts.Lines(f"{run['sweep']}: share of the antagonist", unit, "% of its CPUs", shares, top=105)
    for kind in ("get", "range"):
        tails = {f"{name} at {cell['throughput']:,}/s": _tail(cell, kind) for name, cell in _compared(results, names)}
        if any(tails.values()):
            title = f"{run['sweep']}: distribution of {tables.KINDS[kind].lower()} latencies"
            yield charts.Lines(
                title, "us", "part of the requests that take longer", tails, None, True, True, marks=False
            )


def _latencies(results: Results, name: str, kind: str, key: str) -> charts.Points:
    cells = ((cell["throughput"], cell["rocksdb"][kind]["total"]) for cell in results.of(name))
    return [(throughput, total[key] / 1000) for throughput, total in cells if total["count"]]


def _compared(results: Results, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each candidate, the cell whose distribution is shown, of one throughput if there is one that all have.

    It is the highest at which no candidate is saturated, or else the lowest.
    """
    scale = results.run["time_scale"]
    shared = sorted(set.intersection(*({cell["throughput"] for cell in results.of(name)} for name in names)))
    for name in names:
        own = {cell["throughput"]: cell for cell in results.of(name)}
        good = [t for t in shared or sorted(own) if not any(is_over(c, scale) for c in _at(results, names, t))]
        yield name, own[good[-1] if good else min(shared or own)]


def _at(results: Results, names: Sequence[str], throughput: int) -> list[dict[str, Any]]:
    return [results.cells[name, throughput] for name in names if (name, throughput) in results.cells]


def _tail(cell: Mapping[str, Any], kind: str) -> charts.Points:
    distribution = cell["rocksdb"][kind]["total"].get("distribution", [])
    return [(max(ns, 1) / 1000, 1 - fraction) for fraction, ns in distribution if fraction <= _LAST]


def _table(results: Results, name: str) -> str:
    cells, scale = results.of(name), results.run["time_scale"]
    has_antagonist = any(cell["antagonist"] is not None for cell in cells)
    heads = ["requests/s", "made/s", "p50", "p99", "p99.5", "p99.9", "max", "get p99", "range p99", "unfinished"]
    heads += ["share"] * has_antagonist + [""]
    rows = []
    for cell in cells:
        rocksdb = cell["rocksdb"]
        total, generator = rocksdb["all"]["total"], rocksdb["generator"]
        row = [f"{cell['throughput']:,}", f"{generator['sent'] / generator['wanted_ns'] * 1e9:,.0f}"]
        row += [_stage_time(total, key) for key in ("p50", "p99", "p99.5", "p99.9", "max")]
        row += [_stage_time(rocksdb[kind]["total"], "p99") for kind in ("get", "range")]
        row.append(f"{rocksdb['unfinished']:,}")
        if has_antagonist:
            row.append("" if cell["antagonist"] is None else f"{tables.total_share(cell['antagonist']):.1%}")
        over = is_over(cell, scale)
        marks = ["saturated"] * over + ["noisy"] * cell["noisy"] + ["generator too slow"] * tables.is_short(rocksdb)
        rows.append(([*row, ", ".join(marks)], over))
    return table(heads, rows)


def table(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table that scrolls; each row with whether it stands out."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    lines = [
        f"<tr{' class=over' * over}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row, over in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _stage_time(stage: Mapping[str, Any], key: str) -> str:
    return time_in_words(stage[key]) if stage["count"] else "-"
