# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf compare``: two recordings side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click

from ..output import human_ns, json_option, table
from .events import MADE, TAKEN_OFF, WOKEN, YIELDED
from .explain import warn_incomplete
from .reader import read
from .timeline import Timeline

_EPILOG = """\b
Examples:
  sudo ghostbpf record -o eevdf -- make -j8
  sudo ghostbpf record -o biff -- ghostbpf run biff -- make -j8
  ghostbpf compare eevdf biff

\b
What the lines mean:
  wakeup latency     from a wakeup until the task runs
  preemption wait    from a preemption or yield until the task runs
  slice length       how long a task runs in a row
  migration rate     runs on another CPU than the task's last, per second
  queue length       tasks that wait, over all CPUs, by time
  CPU idle           CPU time without a task
  not conserved      time in which a task waits and a CPU it may use idles

\b
Exit status: 0; 1 if a file cannot be read, 2 if the command line is wrong.
"""


@dataclass(frozen=True)
class Figure:
    """A value of both recordings; a time is in ns."""

    name: str
    unit: str
    a: float
    b: float

    @property
    def ratio(self) -> float | None:
        """B over A."""
        return self.b / self.a if self.a else None

    def shown(self, value: float) -> str:
        """The value for people."""
        return human_ns(value) if self.unit == "ns" else f"{value:,.2f}" + self.unit


@click.command(epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def command(a: Path, b: Path, as_json: bool) -> None:
    """Compare two recordings: latencies, slices, migrations, queues, and work conservation.

    A and B are files of `ghostbpf record`. All tasks of the machine count, also those in no enclave.
    """
    timelines = []
    for path in (a, b):
        recording = read(path)
        timelines.append(Timeline(recording.events))
        warn_incomplete(recording, timelines[-1])
    figures = list(compared(*timelines))
    if as_json:
        for one in figures:
            line = {"name": one.name, "unit": one.unit.strip(), "a": one.a, "b": one.b, "ratio": one.ratio}
            click.echo(json.dumps(line))
        return
    click.echo(table([_row(one) for one in figures]))


def _row(one: Figure) -> dict[str, str]:
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    return {"": one.name, "A": one.shown(one.a), "B": one.shown(one.b), "B/A": ratio}


def compared(a: Timeline, b: Timeline) -> Iterator[Figure]:
    """The figures of two recordings."""
    for name, unit, value in _FIGURES:
        yield Figure(name, unit, value(a), value(b))


def _waits(timeline: Timeline, *why: str) -> list[int]:
    """Waits that began and ended in the recording, in order."""
    tasks = timeline.tasks.values()
    return sorted(w.ns for task in tasks for w in task.waits if w.queued.why in why and w.cpu is not None)


def _slices(timeline: Timeline) -> list[int]:
    tasks = timeline.tasks.values()
    return sorted(run.ns for task in tasks for run in task.runs if run.state >= 0)


def percentile(ordered: Sequence[int], share: float) -> float:
    """The smallest value that ``share`` of the values are not above; 0 of none."""
    if not ordered:
        return 0.0
    rank = -int(-share * len(ordered) // 1)
    return float(ordered[max(rank, 1) - 1])


def _per_second(timeline: Timeline, count: float) -> float:
    return count * 1e9 / timeline.ns if timeline.ns else 0.0


def _mean_waiting(timeline: Timeline) -> float:
    waited = sum(wait.ns for task in timeline.tasks.values() for wait in task.waits)
    return waited / timeline.ns if timeline.ns else 0.0


def _most_waiting(timeline: Timeline) -> float:
    waits = [wait for task in timeline.tasks.values() for wait in task.waits if wait.ns]
    depth = most = 0
    for _, step in sorted([(w.since, 1) for w in waits] + [(w.until, -1) for w in waits]):
        depth += step
        most = max(most, depth)
    return float(most)


def _idle(timeline: Timeline) -> float:
    idle = sum(run.ns for runs in timeline.runs.values() for run in runs if not run.tid)
    total = sum(run.ns for runs in timeline.runs.values() for run in runs)
    return 100 * idle / total if total else 0.0


def not_conserved_ns(timeline: Timeline) -> int:
    """The time in which some task waits though a CPU that it may use idles."""
    changes: list[tuple[int, int, int, int]] = []
    for cpu, runs in timeline.runs.items():
        for run in runs:
            if not run.tid and run.ns:
                changes += [(run.since, 0, cpu, 1), (run.until, 0, cpu, -1)]
    for task in timeline.tasks.values():
        for wait in task.waits:
            if wait.ns and (allowed := timeline.allowed(wait)):
                changes += [(wait.since, allowed, 0, 1), (wait.until, allowed, 0, -1)]
    changes.sort()
    idle = total = 0
    waiting: dict[int, int] = {}
    for (at, allowed, cpu, step), (following, *_) in pairwise([*changes, (timeline.until, 0, 0, 0)]):
        if allowed:
            waiting[allowed] = waiting.get(allowed, 0) + step
            if not waiting[allowed]:
                del waiting[allowed]
        else:
            idle += step << cpu
        if idle and any(mask & idle for mask in waiting):
            total += following - at
    return total


_FIGURES: tuple[tuple[str, str, Callable[[Timeline], float]], ...] = (
    ("wakeup latency, p50", "ns", lambda t: percentile(_waits(t, WOKEN, MADE), 0.5)),
    ("wakeup latency, p99", "ns", lambda t: percentile(_waits(t, WOKEN, MADE), 0.99)),
    ("wakeup latency, max", "ns", lambda t: percentile(_waits(t, WOKEN, MADE), 1)),
    ("preemption wait, p50", "ns", lambda t: percentile(_waits(t, TAKEN_OFF, YIELDED), 0.5)),
    ("preemption wait, p99", "ns", lambda t: percentile(_waits(t, TAKEN_OFF, YIELDED), 0.99)),
    ("preemption wait, max", "ns", lambda t: percentile(_waits(t, TAKEN_OFF, YIELDED), 1)),
    ("slice length, p50", "ns", lambda t: percentile(_slices(t), 0.5)),
    ("slice length, p99", "ns", lambda t: percentile(_slices(t), 0.99)),
    ("migration rate", " /s", lambda t: _per_second(t, sum(task.migrations for task in t.tasks.values()))),
    ("queue length, mean", "", _mean_waiting),
    ("queue length, max", "", _most_waiting),
    ("CPU idle", " %", _idle),
    ("not conserved", " %", lambda t: 100 * not_conserved_ns(t) / t.ns if t.ns else 0.0),
    ("recorded", "ns", lambda t: float(t.ns)),
)
