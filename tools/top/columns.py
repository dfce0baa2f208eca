# SPDX-License-Identifier: Apache-2.0
"""A frame as text in columns: what the screen and ``--once`` have in common.

Columns after the first 80 characters are shown where the terminal is wide enough for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..caveats import counted
from ..output import human_ns, printable
from .drawing import bar, fit, sparkline
from .frame import CpuRow, EnclaveRow, Frame, History, TaskRow
from .health import verdict

_Row = TypeVar("_Row")
#: The columns of one CPU, with the gap after it.
CPU_WIDTH = 40


@dataclass(frozen=True)
class Column(Generic[_Row]):
    """``text`` is what a row shows; ``key`` is what rows are sorted by, the largest first if ``descends``."""

    name: str
    width: int
    text: Callable[[_Row], str]
    key: Callable[[_Row], Any] | None = None
    descends: bool = True
    right: bool = True


def fitting(columns: Sequence[Column[_Row]], width: int) -> list[Column[_Row]]:
    """The first of ``columns`` that ``width`` characters have room for."""
    shown, taken = [], -1
    for column in columns:
        taken += column.width + 1
        if taken > width:
            break
        shown.append(column)
    return shown


def heading(columns: Iterable[Column[_Row]]) -> str:
    """The line of the columns' names."""
    return " ".join(fit(column.name, column.width, right=column.right) for column in columns)


def line(columns: Iterable[Column[_Row]], row: _Row) -> str:
    """The line of one row."""
    return " ".join(fit(printable(column.text(row)), column.width, right=column.right) for column in columns)


def _number(value: float | None) -> str:
    """At most 6 characters."""
    if value is None:
        return "-"
    if value < 9.95 and not isinstance(value, int):
        return f"{value:.1f}".replace("0.0", "0")
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.0f}{unit}"
    return f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f}"


def _time(ns: float | None) -> str:
    return "-" if ns is None else human_ns(ns)


def _short(queue: str) -> str:
    """The name of a queue without what explains it."""
    return queue.partition(",")[0].removeprefix("the kernel's ").removeprefix("the ")


def enclave_columns(history: History, *, blocks: bool) -> list[Column[EnclaveRow]]:
    """Columns of enclaves; ``history`` has the values of the sparkline."""
    return [
        Column("ID", 3, lambda row: str(row.id)),
        Column("POLICY", 16, lambda row: row.policy, right=False),
        Column("CPUS", 8, lambda row: str(row.cpus), right=False),
        Column("BUSY", 7, lambda row: f"{'-' if row.busy is None else f'{row.busy:.2f}'}/{len(row.cpus)}"),
        Column("TASKS", 5, lambda row: str(row.tasks)),
        Column("WAIT", 4, lambda row: str(row.waiting)),
        Column("SW/s", 6, lambda row: _number(row.switches)),
        Column("LATENCY", 8, lambda row: _time(row.latency_ns)),
        Column("", 6, lambda row: sparkline(history.latency.get(row.id, ()), 6, blocks=blocks)),
        Column("HEALTH", 8, lambda row: verdict(row).word, right=False),
        # From here on, only on wider terminals.
        Column("RUN", 3, lambda row: str(row.running)),
        Column("PRE/s", 6, lambda row: _number(row.preempted)),
        Column("QUEUED", 6, lambda row: str(row.queued)),
        Column("LONGEST", 8, lambda row: _time(row.longest_wait_ns or None)),
        Column("AGENT", 9, lambda row: row.agent.state if row.agent is not None else "none", right=False),
    ]


#: Columns of tasks; the name of a column is also a value of --sort.
TASK_COLUMNS: list[Column[TaskRow]] = [
    Column("TID", 7, lambda row: str(row.tid), lambda row: row.tid, False),
    Column("NAME", 15, lambda row: row.comm, lambda row: row.comm, False, False),
    Column("EN", 2, lambda row: str(row.enclave), lambda row: row.enclave, False),
    Column("CPU#", 4, lambda row: str(row.cpu), lambda row: row.cpu, False),
    Column("STATE", 8, lambda row: row.state, lambda row: row.state, False, False),
    Column("%CPU", 5, lambda row: _share(row.cpu_share), lambda row: row.cpu_share or 0),
    Column("%WAIT", 5, lambda row: _share(row.wait_share), lambda row: row.wait_share or 0),
    Column("LATENCY", 8, lambda row: _time(row.latency_ns), lambda row: row.latency_ns or 0),
    Column("TIME", 8, lambda row: _time(row.runtime_ns), lambda row: row.runtime_ns),
    Column("MIGR", 6, lambda row: _number(row.migrations), lambda row: row.migrations),
    # From here on, only on wider terminals.
    Column("NOW", 8, lambda row: _time(row.waiting_ns or None), lambda row: row.waiting_ns),
    Column("RUNS/s", 6, lambda row: _number(row.runs), lambda row: row.runs or 0),
    Column("PID", 7, lambda row: str(row.pid), lambda row: row.pid, False),
    Column("QUEUE", 15, lambda row: _short(row.queue_name), lambda row: row.queue_name, False, False),
]
SORT_NAMES = tuple(column.name.lower().lstrip("%") for column in TASK_COLUMNS)


def sort_tasks(tasks: Iterable[TaskRow], name: str, *, inverted: bool = False) -> list[TaskRow]:
    """``tasks`` by the column that is ``name`` in SORT_NAMES; equal ones by their tid."""
    column = TASK_COLUMNS[SORT_NAMES.index(name)]
    key = column.key or column.text
    return sorted(sorted(tasks, key=lambda row: row.tid), key=key, reverse=column.descends != inverted)


def select_tasks(tasks: Iterable[TaskRow], enclave: int | None = None, words: str = "") -> list[TaskRow]:
    """The tasks of ``enclave`` (None: of all) that have each of ``words`` in their name, state, tid or pid."""
    wanted = words.lower().split()
    return [
        row
        for row in tasks
        if enclave in (None, row.enclave)
        and all(word in row.comm.lower() or word in (str(row.tid), str(row.pid), row.state) for word in wanted)
    ]


def cpu_cell(row: CpuRow) -> str:
    """One CPU in CPU_WIDTH - 1 columns: bar, load, enclave, queue depth, and what it runs."""
    what = {"running": printable(row.comm), "other": "(other class)"}.get(row.state, f"({row.state})")
    load = f"{_share(row.busy):>3}%" if row.busy is not None else "   -"
    owner = f"e{row.enclave}" if row.enclave else "-"
    return fit(f"{row.cpu:>3}{bar(row.busy, row.ext, 10)}{load} {owner:<3} q{row.depth:<2} {what}", CPU_WIDTH - 1)


def cpu_lines(rows: Sequence[CpuRow], width: int, height: int, *, blocks: bool) -> list[str]:
    """The CPUs in at most ``height`` lines; if they do not fit with names, one character each for their load."""
    across = max((width + 1) // CPU_WIDTH, 1)
    down = -(-len(rows) // across)
    if down <= height:
        # By columns, as they are numbered.
        return [" ".join(cpu_cell(row) for row in rows[start::down]) for start in range(down)]
    chunk = max(width - 12, 8)
    lines = [_dense(rows[start : start + chunk], blocks) for start in range(0, len(rows), chunk)]
    return lines[: height - 1] + [f"and {len(rows) - (height - 1) * chunk} more"] if len(lines) > height else lines


def _dense(rows: Sequence[CpuRow], blocks: bool) -> str:
    """The numbers of the first and the last CPU, and the load of each; x: it is offline."""

    def load(row: CpuRow) -> str:
        return "x" if row.state == "offline" else sparkline([row.busy or 0.0], 1, 1.0, blocks=blocks)

    return f"{f'{rows[0].cpu}-{rows[-1].cpu}':>9} |{''.join(map(load, rows))}|"


def headline(frame: Frame) -> str:
    """The first line: the core, and how much there is of everything."""
    if frame.state != "attached":
        return f"ghostbpf: {frame.state}"
    running = sum(row.running for row in frame.enclaves)
    waiting = sum(row.waiting for row in frame.enclaves)
    mode = "every task of the fair class" if frame.full else "attached"
    return (
        f"ghostbpf: {mode}; {counted(len(frame.enclaves), 'enclave')}, "
        f"{counted(sum(row.tasks for row in frame.enclaves), 'task')}: {running} run, {waiting} wait"
    )


def report(frame: Frame, history: History, tasks: Sequence[TaskRow], width: int, *, blocks: bool) -> list[str]:
    """The lines that ``--once`` prints."""
    enclaves, shown = fitting(enclave_columns(history, blocks=blocks), width), fitting(TASK_COLUMNS, width)
    lines = [headline(frame), "", heading(enclaves), *(line(enclaves, row) for row in frame.enclaves), ""]
    lines += [*cpu_lines(frame.cpus, width, len(frame.cpus), blocks=blocks), ""]
    lines += [heading(shown), *(line(shown, row) for row in tasks)]
    return [one.rstrip() for one in lines]
