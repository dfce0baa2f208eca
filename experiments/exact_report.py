# SPDX-License-Identifier: Apache-2.0
"""Figures of ``make bench-exact``: as JSON lines, in tables, and compared with an earlier run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..loaders.errors import GhostError
from ..tools.output import printable

#: The parts in the order of their tables, each with its title.
_TITLES = {
    "workload": "instructions of all CPUs: per operation of pipe, per message of messaging, of BPF per pipe operation",
    "agent": "agents in pipe: instructions per decision and per message, messages per decision",
    "transaction": "Agent.commit from Python: instructions per transaction",
    "tracer": "tracers in pipe under biff, without filters: instructions per operation",
    "bpf": "BPF programs in pipe",
}


@dataclass(frozen=True)
class Figure:
    """One measured value; ``part`` is a table, and ``name`` and ``unit`` say what the value counts."""

    scheduler: str
    part: str
    name: str
    unit: str
    value: float

    @property
    def key(self) -> tuple[str, ...]:
        """What the figure has in common with the same figure of another run."""
        return self.scheduler, self.part, self.name, self.unit

    @classmethod
    def from_json(cls, line: str) -> Figure:
        """The figure of a line that ``as_row`` was printed to; raises ValueError."""
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("it is not an object")
        values: dict[str, Any] = {name: row.get(name) for name in _FIELDS}
        for name, value in values.items():
            if type(value) not in ((int, float) if name == "value" else (str,)):
                raise ValueError(f"{name} is {value!r}")
        return cls(**values)

    def as_row(self, baseline: Mapping[tuple[str, ...], float] | None = None) -> dict[str, Any]:
        """The JSON object; with ``baseline``, also the earlier value and the change in per cent."""
        row = asdict(self)
        if baseline is not None:
            row["baseline"] = baseline.get(self.key)
            row["change"] = change(self.value, row["baseline"])
        return row


_FIELDS = tuple(field.name for field in fields(Figure))


def change(value: float, before: float | None) -> float | None:
    """The change from ``before`` in per cent; None without ``before``, or if only ``before`` is 0."""
    if before is None or (before == 0 and value != 0):
        return None
    return 0.0 if before == value else 100 * (value / before - 1)


def grown(figures: Iterable[Figure], baseline: Mapping[tuple[str, ...], float], percent: float) -> list[str]:
    """A line for each number of instructions that is more than ``percent`` above its earlier value."""
    lines = []
    for figure in figures:
        changed = change(figure.value, baseline.get(figure.key))
        if figure.unit.startswith("instructions") and changed is not None and changed > percent:
            what = f"{figure.scheduler}, {figure.name}: {figure.value:,.0f} {figure.unit}"
            lines.append(f"{what}, {baseline[figure.key]:,.0f} before: {changed:+.1f} %, above {percent:g} %")
    return lines


def least(figures: Iterable[Figure], others: Iterable[Figure]) -> list[Figure]:
    """``figures``, each with the lesser of its value and that of the same figure in ``others``."""
    values = {figure.key: figure.value for figure in others}
    return [replace(figure, value=min(figure.value, values.get(figure.key, figure.value))) for figure in figures]


def read_baseline(path: Path) -> dict[tuple[str, ...], float]:
    """The values of an earlier run by key, from its ``--json`` lines; raises GhostError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise GhostError(f"cannot read {path}: {reason}", hint="--baseline FILE, FILE from --json >FILE") from None
    values = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                figure = Figure.from_json(line)
            except ValueError as error:
                hint = "FILE has the lines that --json printed, and nothing else"
                raise GhostError(f"{path}:{number}: not a figure of bench_exact: {error}", hint=hint) from None
            values[figure.key] = figure.value
    if not values:
        raise GhostError(f"{path} has no figures", hint="--baseline FILE, FILE from --json >FILE")
    return values


def tables(figures: Iterable[Figure], baseline: Mapping[tuple[str, ...], float] | None = None) -> str:
    """A table for each part that has figures: a row for each scheduler, or for each BPF program of a scheduler."""
    figures = list(figures)
    shown = []
    for part, title in _TITLES.items():
        if own := [figure for figure in figures if figure.part == part]:
            shown.append(f"{title}\n{_table(own, baseline, by_program=part == 'bpf')}\n")
    return "\n".join(shown)


def _table(figures: Sequence[Figure], baseline: Mapping[tuple[str, ...], float] | None, *, by_program: bool) -> str:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    columns: dict[str, None] = {}
    for figure in figures:
        row = (figure.scheduler, figure.name) if by_program else (figure.scheduler,)
        column = figure.unit if by_program else figure.name
        columns[column] = None
        rows.setdefault(row, {})[column] = _cell(figure, baseline)
    heads = ["scheduler", "program"] if by_program else ["scheduler"]
    cells = [[*map(printable, row), *(values.get(column, "") for column in columns)] for row, values in rows.items()]
    align = ["left"] * len(heads) + ["right"] * len(columns)
    return tabulate(cells, headers=[*heads, *columns], colalign=align, disable_numparse=True)


def _cell(figure: Figure, baseline: Mapping[tuple[str, ...], float] | None) -> str:
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.2f}"
    if baseline is None:
        return value
    changed = change(figure.value, baseline.get(figure.key))
    return f"{value} {'(new)' if changed is None else f'{changed:+.1f}%'}"
