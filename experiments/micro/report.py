# SPDX-License-Identifier: Apache-2.0
"""The part of the report for global-scalability: what a schedule costs, against CPUs and against tasks."""

from __future__ import annotations

from collections.abc import Iterator

from ..journal import Row
from ..rocksdb import charts
from ..rocksdb.report import facts, noise, plots, table, text
from .scalability import Results, rate


def sections(results: Results) -> Iterator[str]:
    """The parts of the page for one run."""
    run = results.run
    measured = [name for name in run["candidates"] if any(row["ns"] for row in results.of(name))]
    cells = [row for name in measured for row in results.of(name) if row["ns"]]
    yield f"<h2>{text(run['sweep'])}</h2>"
    options = run["options"]
    more = {
        "agent": f"on CPU {options['global_cpu']}; {options['total_loops']:,} loops of all threads together",
        "cells": f"{len(results.cells)} of {len(run['plan'])}",
        "noise": noise(cells),
    }
    yield facts(run, more)
    for name, row in results.failures.items():
        yield f'<p class="bad">{text(name)} failed with {row["task_cpus"]} CPUs: {text(row["reason"])}</p>'
    if not cells:
        yield '<p class="bad">Nothing was measured.</p>'
        return
    yield plots(_plots(results, measured))
    for name in measured:
        yield f"<h3>{text(name)}: {text(run['candidates'][name])}</h3>"
        yield _table(results.of(name))


def _plots(results: Results, names: list[str]) -> Iterator[charts.Lines]:
    rows = [row for name in names for row in results.of(name) if row["ns"]]
    threads = sorted({row["threads_per_cpu"] for row in rows})

    def points(x: str, own: list[Row]) -> charts.Points:
        return sorted((_x(row, x), 1e9 / rate(row)) for row in own)

    by_cpus = {
        name if len(threads) == 1 else f"{name}, {count} a CPU": points("task_cpus", own)
        for name in names
        for count in threads
        if (own := [row for row in rows if (row["candidate"], row["threads_per_cpu"]) == (name, count)])
    }
    yield charts.Lines("cost against CPUs", "CPUs of tasks", "ns per schedule", by_cpus)
    # The number of tasks alone changes where the CPUs are the same; with one number on each CPU, both change.
    most = max(row["task_cpus"] for row in rows)
    by_tasks = {
        name: points("threads", [r for r in rows if r["candidate"] == name and (len(threads) == 1 or _x(r) == most)])
        for name in names
    }
    title = "cost against tasks" + (f", {most} CPUs" if len(threads) > 1 else "")
    yield charts.Lines(title, "tasks", "ns per schedule", by_tasks)
    rates = {name: [(x, 1e6 / ns) for x, ns in line] for name, line in by_cpus.items()}
    yield charts.Lines("rate against CPUs", "CPUs of tasks", "1,000 schedules/s, of all CPUs", rates)


def _x(row: Row, x: str = "task_cpus") -> int:
    return int(row["task_cpus"] * (row["threads_per_cpu"] if x == "threads" else 1))


def _table(rows: list[Row]) -> str:
    heads = ["CPUs of tasks", "threads", "loops each", "schedules/s", "ns per schedule", ""]
    lines = []
    for row in rows:
        ns = f"{1e9 / rate(row):,.0f}" if row["ns"] else "-"
        mark = "noisy" * row["noisy"]
        counts = [f"{number:,.0f}" for number in (row["task_cpus"], _x(row, "threads"), row["loops"], rate(row))]
        lines.append(([*counts, ns, mark], False))
    return table(heads, lines)
