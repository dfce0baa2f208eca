# SPDX-License-Identifier: Apache-2.0
"""What ``ghostbpf bench`` prints: a table for each workload, JSON lines, and progress."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
from tabulate import tabulate

from ...tools.output import printable, with_remedy
from ..journal import Journal, Row
from . import figures, kept
from .noise import LIMIT
from .plan import Candidate, Plan
from .rounds import LOST, START, STOP, Failure, Observer, Results
from .running import Measurement
from .summary import Baseline, Summary
from .workloads import Workload

_NAME_WIDTH = 18
_WHAT = {START: "did not start", STOP: "did not end as it should", LOST: "was ejected"}


class ProgressLine:
    """A line on stderr that the next one replaces; where stderr is no terminal, each stays."""

    def __init__(self) -> None:
        self._is_tty = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Show ``text``, in which control characters are escaped."""
        line = printable(text)
        if self._is_tty:
            # Long lines would wrap, and a carriage return begins only the last row anew.
            line = f"\r\033[K{line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}"
        click.echo(line, err=True, nl=not self._is_tty)

    def end(self) -> None:
        """Remove it."""
        if self._is_tty:
            click.echo("\r\033[K", err=True, nl=False)


def tell_left_out(failure: Row, where: str) -> None:
    """Say on stderr that the candidate of a sweep's ``failure`` is left out, why, and ``where`` it failed."""
    what = _WHAT.get(failure["kind"], "failed")
    line = f"error: {failure['candidate']} {what} {where}, and is left out: {failure['reason']}"
    click.echo(with_remedy(line, failure["hint"]), err=True)


class Printer(Observer):
    """Prints progress and failures on stderr, and each measurement, with ``as_json`` on stdout, and to ``journal``."""

    def __init__(self, plan: Plan, journal: Journal | None, *, as_json: bool) -> None:
        self._plan, self._journal, self._as_json = plan, journal, as_json
        self._progress = ProgressLine()

    def starts(self, number: int, workload: Workload, candidate: Candidate, left_s: float | None) -> None:
        where = f"round {number} of {self._plan.rounds}" if number else "warm-up"
        left = "" if left_s is None else f", {duration(left_s)} left"
        self._progress.show(f"{where}: {workload.text} under {candidate.name}{left}")

    def end(self) -> None:
        """Remove the line of progress."""
        self._progress.end()

    def measured(self, number: int, workload: Workload, candidate: Candidate, measurement: Measurement) -> None:
        if number:
            self._keep(kept.measurement_row(number, workload.text, candidate.name, measurement))

    def failed(self, failure: Failure) -> None:
        self.end()
        click.echo(with_remedy(f"error: {_sentence(failure)}: {failure.reason}", failure.hint), err=True)
        self._keep(kept.failure_row(failure))

    def summarized(self, summaries: Sequence[Summary], baseline: Baseline | None, *, is_complete: bool) -> None:
        """It has ended; a file that is not ``is_complete`` gets its summaries when it is resumed."""
        for summary in summaries:
            self._keep(summary.as_row(baseline), in_file=is_complete)

    def _keep(self, row: Row, *, in_file: bool = True) -> None:
        if self._as_json:
            click.echo(json.dumps(row))
        if self._journal is not None and in_file:
            self._journal.append(row)


def _sentence(failure: Failure) -> str:
    when = f"round {failure.round}" if failure.round else "the warm-up"
    if failure.kind not in _WHAT:
        return f"{failure.workload} failed under {failure.candidate} in {when}"
    return f"{failure.candidate} {_WHAT[failure.kind]} in {when} of {failure.workload}"


def header(plan: Plan, version: str) -> dict[str, Any]:
    """The first JSON line: what was measured, where, and in which order."""
    return {
        "type": "run",
        "version": version,
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "cpus": str(plan.cpus),
        "workloads": [workload.text for workload in plan.workloads],
        "candidates": {candidate.name: candidate.describe() for candidate in plan.candidates},
        "rounds": plan.rounds,
        "seed": plan.seed,
    }


def tables(plan: Plan, summaries: Sequence[Summary], results: Results, baseline: Baseline | None) -> str:
    """A table for each workload, within 80 columns, with what the figures can and cannot tell."""
    blocks = []
    for workload, of_workload in itertools.groupby(summaries, lambda one: one.workload):
        lines = list(of_workload)
        blocks.append(f"{printable(workload)}\n{_table(lines, baseline)}\n{_notes(lines)}")
    for failure in results.failures:
        left_out = failure.candidate if results.has_failed(failure.candidate) else failure.workload
        blocks.append(f"{printable(left_out)} has no figures: {printable(_sentence(failure))}\n")
    runs = [
        len(results.measured[workload.text, candidate.name])
        for workload in plan.workloads
        for candidate in plan.candidates
        if not (results.is_dropped(workload.text) or results.has_failed(candidate.name))
    ]
    if results.interrupted is not None:
        blocks.append(f"interrupted: {min(runs, default=0)} of {plan.rounds} rounds are complete\n")
    return "\n".join(blocks)


def _table(lines: Sequence[Summary], baseline: Baseline | None) -> str:
    """One table with a line above the rows of each metric, so that the columns of all metrics agree."""
    heads = ["candidate", "median", "min … max", "ratio", "95 % of ratio", ""]
    align = ["left", "right", "right", "right", "right", "left"]
    rows = []
    for one in lines:
        bounds = "" if one.low is None or one.high is None else f"{one.low:.3f} … {one.high:.3f}"
        row = [_short(one.candidate), value(one.median), f"{value(one.min)} … {value(one.max)}"]
        row += ["" if one.ratio is None else f"{one.ratio:.3f}", bounds]
        row.append(one.verdict if one.verdict in (figures.BETTER, figures.WORSE) else "")
        if baseline is not None:
            changed = one.as_row(baseline)["change"]
            row.append("(new)" if changed is None else f"{changed:+.1f} %")
        rows.append(row)
    if baseline is not None:
        heads, align = [*heads, "change"], [*align, "right"]
    shown = tabulate(rows, headers=heads, colalign=align, disable_numparse=True).splitlines()
    head, body = shown[:2], iter(shown[2:])
    for (metric, unit, better), of_metric in itertools.groupby(lines, lambda one: (one.metric, one.unit, one.better)):
        head.append(f"{metric}, {unit} ({better} is better)")
        head += [next(body).rstrip() for _ in of_metric]
    return "\n".join(head)


def _notes(lines: Sequence[Summary]) -> str:
    """What EEVDF differs from itself, which differences that hides, and how many rounds are marked."""
    notes = []
    for metric, of_metric in itertools.groupby(lines, lambda one: one.metric):
        group = list(of_metric)
        noise = group[0].noise
        hidden = [one.candidate for one in group if one.verdict == figures.WITHIN_NOISE]
        if noise is not None and hidden:
            names = ", ".join(map(printable, hidden))
            all_of = len(hidden) == sum(one.verdict is not None for one in group)
            end = ": too noisy to tell" if all_of and noise >= _TOO_NOISY else ""
            notes.append(f"{metric}: {names} within noise, EEVDF differs from itself by up to {noise:.1%}{end}")
    if marked := sum(one.noisy for one in lines if one.metric == lines[0].metric):
        runs = sum(one.rounds for one in lines if one.metric == lines[0].metric)
        notes.append(f"in {marked} of {runs} runs other processes used more than {LIMIT:g} CPU")
    return "".join(f"{note}\n" for note in notes)


#: If no candidate differs by more than EEVDF from itself, and that is this much, the machine is too noisy.
_TOO_NOISY = 0.05


def value(number: float) -> str:
    """A figure with three or four digits: 0.0123, 1.234, 12.3, 4,567."""
    if number >= 1000:
        return f"{number:,.0f}"
    digits = 4 if number < 0.1 else 3 if number < 10 else 1
    return f"{number:.{digits}f}"


def duration(seconds: float) -> str:
    """A time in words: "12 s", "3 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


def dry_run(plan: Plan) -> Iterator[str]:
    """The lines of --dry-run: the candidates, the commands, the order, and about how long all takes."""
    yield f"CPUs {plan.cpus}, {plan.rounds} rounds, seed {plan.seed}"
    for candidate in plan.candidates:
        yield printable(f"candidate  {candidate.name}: {candidate.describe()}")
    for workload in plan.workloads:
        yield printable(f"workload   {workload.text}: {' '.join(workload.command(len(plan.cpus)))}")
    for number, workload, order in plan.order():
        yield printable(f"round {number}: {workload.text}: {', '.join(candidate.name for candidate in order)}")
    seconds = plan.seconds()
    runs = len(plan.workloads) * len(plan.candidates) * plan.rounds
    about = "how long they take depends on your command" if seconds is None else f"about {duration(seconds)}"
    yield f"{runs} runs, {about}"
