# SPDX-License-Identifier: Apache-2.0
"""Runs a tracer: attaches it and prints reports until a time-out, the command's end or Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from ...loaders import capabilities, pid_namespace
from ...schedulers.launch import Command, signals_blocked, termination_signals
from ..output import check_plot, printable
from .report import HistogramSection, Section
from .tool import Tool
from .tracer import Missed

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Pace:
    """When to print: every ``interval`` seconds, ``count`` times; ``duration`` seconds end the trace."""

    interval: float | None = None
    count: int | None = None
    duration: float | None = None


@dataclass(frozen=True)
class Output:
    """How to print."""

    as_json: bool = False
    timestamps: bool = False
    plot: Path | None = None


class Printer:
    """Prints reports, and keeps histograms for the plot."""

    def __init__(self, tool: Tool, output: Output) -> None:
        self._tool, self._output = tool, output
        self.events = 0
        self.plotted: list[tuple[float, list[HistogramSection]]] = []

    def show(self, sections: Iterable[Section], seconds: float | None = None) -> None:
        """Print the sections that have events; with ``seconds``, they are the report on that time."""
        filled = [section for section in sections if section.events]
        self.events += sum(section.events for section in filled)
        if seconds is not None:
            self.plotted.append((seconds, [s for s in filled if isinstance(s, HistogramSection)]))
        if self._output.as_json:
            for section in filled:
                for line in section.json():
                    click.echo(
                        json.dumps({**self._stamp(), **({"seconds": round(seconds, 3)} if seconds else {}), **line})
                    )
            return
        if seconds is not None and self._output.timestamps:
            click.echo(datetime.now().strftime("%H:%M:%S"))
        for section in filled:
            click.echo(section.text() + ("\n" if seconds is not None else ""))

    def end(self, seconds: float, drops: int, missed: Missed) -> None:
        """Print the numbers of lost events and, if there were no events, the likely reason."""
        if self._output.as_json:
            end = {"type": "end", "seconds": round(seconds, 3), "events": self.events, "drops": drops}
            click.echo(json.dumps({**self._stamp(), **end, **missed._asdict()}))
        if drops:
            click.echo(f"{drops} events were dropped: the figures are too low", err=True)
        if any(missed):
            click.echo(
                f"{missed.unended} times without an end (unended) and {missed.unannounced} without a start "
                "(unannounced) are not in the figures: the kernel did not report all switches",
                err=True,
            )
        if not self.events:
            click.echo(printable(f"nothing matched: {self._tool.why_nothing()}"), err=True)

    def _stamp(self) -> dict[str, str]:
        return {"tool": self._tool.NAME, "time": datetime.now().astimezone().isoformat(timespec="milliseconds")}


def run(tool: Tool, pace: Pace, output: Output, command: tuple[str, ...]) -> int:
    """Trace and print reports; returns the exit status, which is the ``command``'s if there is one."""
    check_plot(output.plot)
    capabilities.need("trace", "CAP_BPF", "CAP_PERFMON")
    with signals_blocked({signal.SIGCHLD, *termination_signals()}):
        child = Command(command) if command else None
        try:
            status = _trace(tool, pace, output, child)
        except BaseException:
            if child is not None:
                child.abandon()
            raise
    return status


def _trace(tool: Tool, pace: Pace, output: Output, child: Command | None) -> int:
    printer = Printer(tool, output)
    with tool:
        if tool.SHOWS_BPF_IDS and (note := pid_namespace.note()):
            click.echo(note, err=True)
        if child is None:
            click.echo(f"Tracing {tool.TRACES}... Hit Ctrl-C to end.", err=True)
        else:
            child.start(tool.tracer.mark)
        started = last = tool.tracer.started
        status = 0
        for reported in _moments(pace, time.monotonic(), child):
            tool.tracer.follow_hotplug()
            printer.show(tool.poll())
            if reported:
                now = time.monotonic()
                printer.show(tool.report(now - last), now - last)
                last = now
        if child is not None:
            status = child.status()
        printer.end(time.monotonic() - started, tool.tracer.drops(), tool.tracer.missed())
    if output.plot is not None and not _draw(output.plot, tool.NAME, printer.plotted):
        return status or 1
    return status


def _moments(pace: Pace, started: float, child: Command | None) -> Iterator[bool]:
    """Yields every 0.1 s whether a report is due; ends after the last report."""
    end = started + (pace.duration if pace.duration is not None else math.inf)
    remaining = pace.count if pace.count is not None else math.inf
    due = started + (pace.interval or math.inf)
    while remaining > 0:
        until = min(due, end, time.monotonic() + _POLL_SECONDS)
        ended = _wait(until - time.monotonic(), child)
        now = time.monotonic()
        if ended or now >= end:
            yield True
            return
        yield now >= due
        if now >= due:
            remaining -= 1
            interval = pace.interval or math.inf
            # After a late report, the next one still covers at least half an interval.
            due = max(due, now - interval / 2) + interval


def _wait(seconds: float, child: Command | None) -> bool:
    """Wait up to ``seconds`` for a signal or the command's end; returns whether one came."""
    seconds = max(seconds, 0)
    if child is not None:
        return child.wait(seconds) is not None
    return signal.sigtimedwait(termination_signals(), seconds) is not None


def _draw(path: Path, name: str, reports: list[tuple[float, list[HistogramSection]]]) -> bool:
    if not any(sections for _, sections in reports):
        click.echo(f"nothing to draw: {path} is not written", err=True)
        return True
    from . import plot

    try:
        plot.draw(path, name, reports)
    except OSError as error:
        click.echo(f"error: cannot draw to {path}: {error}", err=True)
        return False
    return True
