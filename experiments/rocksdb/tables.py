# SPDX-License-Identifier: Apache-2.0
"""The results of the programs in C, and as tables and CSV: one row per stage of a request, or per antagonist thread."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The stages of a request, in their order, by the name that the program in C has for them.
STAGES = {
    "ingress_queue": "Ingress Queue Time",
    "repeatable_handle": "Repeatable Handle Time",
    "worker_queue": "Worker Queue Time",
    "worker_handle": "Worker Handle Time",
    "total": "Total",
}
#: Kinds of requests, and how their tables are headed.
KINDS = {"get": "Get", "range": "Range", "all": "All"}
#: The last of them alone.
LAST = {"total": STAGES["total"]}
PRETTY, CSV = "pretty", "csv"

_PERCENTILES = {"min": "Min", "p50": "50%", "p99": "99%", "p99.5": "99.5%", "p99.9": "99.9%", "max": "Max"}

Stage = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """A unit of times, of so many nanoseconds."""

    name: str
    ns: int


MICROSECONDS, NANOSECONDS = Unit("us", 1000), Unit("ns", 1)


def stage_rows(stages: Mapping[str, Stage], seconds: float, unit: Unit) -> list[list[str]]:
    """A row for each stage of a kind of requests; an empty stage has "-" for its times."""
    return [_row(name, stages[key], seconds, unit) for key, name in STAGES.items()]


def _row(name: str, stage: Stage, seconds: float, unit: Unit) -> list[str]:
    count = stage["count"]
    times = [str(round(stage[key] / unit.ns)) if count else "-" for key in _PERCENTILES]
    return [name, str(count), str(round(count / seconds)) if count else "-", *times]


def rocksdb(
    result: Mapping[str, Any],
    kinds: Sequence[str],
    unit: Unit,
    form: str,
    *,
    stages: Mapping[str, str] = STAGES,
    with_distribution: bool = False,
) -> str:
    """The tables of ``kinds`` of requests, as ``form`` has it: PRETTY or CSV; with a distribution after each stage."""
    seconds = result["generator"]["wanted_ns"] / 1e9
    heads = [["", "Total", "", *_PERCENTILES.values()], ["Stage", "Requests", "req/s", *[f"({unit.name})"] * 6]]
    lines = ["Stats:"] if form == PRETTY else []
    for kind in kinds:
        rows = [_row(name, result[kind][key], seconds, unit) for key, name in stages.items()]
        if form == CSV:
            shown = [",".join([KINDS[kind], *row]) for row in rows]
        else:
            first, second, *shown = table(heads, rows)
            lines += [f"{KINDS[kind]}:", first, second]
        for line, key in zip(shown, stages, strict=True):
            lines += [line, *(_distribution(result[kind][key], unit) if with_distribution else ())]
    return "\n".join(lines) + "\n"


def _distribution(stage: Stage, unit: Unit) -> Iterator[str]:
    """The time that each part of the requests took at most, as ``part:time``; the original prints all times."""
    if stage["count"]:
        points = " ".join(f"{part:.2%}:{round(ns / unit.ns)}" for part, ns in stage["distribution"])
        yield from ("Distribution:", *textwrap.wrap(points, 79))


def shares(threads: Sequence[Sequence[int]]) -> list[list[str]]:
    """For each of an antagonist's threads (CPU time and elapsed time in ns), and for all: how much it has run."""
    used, took = sum(thread[0] for thread in threads), sum(thread[1] for thread in threads)
    named: list[tuple[str, int, int]] = [
        *((str(n), thread[0], thread[1]) for n, thread in enumerate(threads)),
        ("Total", used, took),
    ]
    return [[name, str(run), f"{run / elapsed:.10g}" if elapsed else "-"] for name, run, elapsed in named]


def total_share(threads: Sequence[Sequence[int]]) -> float:
    """The part of the elapsed time in which an antagonist's threads have run, on average."""
    return sum(thread[0] for thread in threads) / max(sum(thread[1] for thread in threads), 1)


def antagonist(threads: Sequence[Sequence[int]], form: str) -> str:
    """The table of an antagonist's threads, as ``form`` has it: PRETTY or CSV."""
    rows = shares(threads)
    if form == CSV:
        return "".join(f"{','.join(row)}\n" for row in rows)
    return "\n".join(table([["Worker", "Run Duration (ns)", "Work Share"]], rows)) + "\n"


def table(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table with several lines of heads, which tabulate would make wider than 80 columns."""
    widths = [max(map(len, column)) for column in zip(*heads, *rows, strict=True)]
    for row in (*heads, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield " ".join(cells).rstrip()


def notes(result: Mapping[str, Any], wanted: float) -> list[str]:
    """What the reader of a result must know of it: what the generator could not make, and what has not ended."""
    generator = result["generator"]
    seconds = generator["wanted_ns"] / 1e9
    found = []
    if is_short(result):
        found.append(
            f"the load generator made {generator['sent'] / seconds:,.0f} of {wanted:,.0f} requests/s: it was late by "
            f"{(generator['wanted_ns'] - generator['reached_ns']) / 1e6:,.0f} ms at the end"
        )
    if generator["dropped"]:
        found.append(f"{generator['dropped']:,} requests were dropped: 2,097,152 were waiting")
    if result["unfinished"]:
        found.append(
            f"{result['unfinished']:,} requests had not begun at the end: Total counts them with their age, "
            "which is less than their latency"
        )
    if result["missing"]:
        found.append(f"{result['missing']:,} requests did not find their entries: the database is damaged")
    late = generator["lateness"]
    if late["count"]:
        found.append(
            f"the load generator was late by {late['p50'] / 1e3:,.0f} us at the median and by "
            f"{late['p99'] / 1e3:,.0f} us at the 99th percentile; latencies include that, and it used "
            f"{100 * cpu_share(result):.1f} % of a CPU"
        )
    return found


def cpu_share(result: Mapping[str, Any]) -> float:
    """The part of a CPU that the load generator used."""
    return float(result["generator"]["cpu_ns"] / result["generator"]["wanted_ns"])


def is_short(result: Mapping[str, Any]) -> bool:
    """Whether the load generator could not make the rate: it is behind by a hundredth of the time or more."""
    generator = result["generator"]
    if not generator["sent"]:
        return False
    gap = generator["wanted_ns"] - generator["reached_ns"]
    # The last arrival is before the end, by the mean gap.
    return bool(gap > generator["wanted_ns"] / 100 + 20 * generator["wanted_ns"] / generator["sent"])


def time_in_words(ns: float) -> str:
    """A time in three digits or more, in us, ms or s."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 100 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns / 1e3:.3g} us" if ns < 1e5 else f"{ns / 1e3:.0f} us"
