# SPDX-License-Identifier: Apache-2.0
"""The base classes of tools."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import click

from .filters import By, Filters
from .histogram import Histogram
from .report import HistogramSection, Section
from .tracer import Tracer

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Request:
    """The request on the command line; ``options`` are the tool's own."""

    filters: Filters = field(default_factory=Filters)
    by: By = By.NOTHING
    unit_ns: int = 1_000
    options: Mapping[str, Any] = field(default_factory=dict)


class Seconds(click.FloatRange):
    """A positive, finite number of seconds; or, like the durations of policies, a number with a unit: 500ms."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = str(value).rstrip("mus")
        try:
            seconds = float(number) * _UNITS[str(value)[len(number) :]]
        except (ValueError, KeyError):
            seconds = math.nan
        if not math.isfinite(seconds):
            hint = "; write -- before a command" if isinstance(param, click.Argument) else ""
            self.fail(f"'{value}' is not a number of seconds{hint}.", param, ctx)
        return float(super().convert(seconds, param, ctx))


class Tool:
    """A tracer, attached for a with block, with its reports; ``ghostbpf trace NAME`` is generated from the class."""

    NAME: ClassVar[str]
    #: For the message at the start: "Tracing … Hit Ctrl-C to end."
    TRACES: ClassVar[str]
    EXAMPLES: ClassVar[str] = ""
    OPTIONS: ClassVar[tuple[click.Parameter, ...]] = ()
    #: Parameters in place of the arguments INTERVAL and COUNT, with options of these names.
    ARGUMENTS: ClassVar[tuple[click.Parameter, ...]] = ()
    #: The common filters that the tool supports.
    FILTERS: ClassVar[tuple[str, ...]] = ("pid", "tid", "comm", "cgroup", "enclave", "cpu")
    #: Whether the tool supports these groups of common options: breakdown, --plot, -m.
    BREAKS_DOWN: ClassVar[bool] = True
    PLOTS: ClassVar[bool] = True
    TIMES: ClassVar[bool] = True
    #: Whether its reports have pids of the initial pid namespace, which BPF uses.
    SHOWS_BPF_IDS: ClassVar[bool] = True

    #: The source of the reports.
    tracer: Tracer

    def __init__(self, request: Request) -> None:
        self.request = request

    def make(self) -> Tracer:
        """Make the tracer, not yet attached; by default from the BPF file with the tool's name."""
        return Tracer(
            self.NAME,
            self.request.filters,
            by=self.request.by,
            unit_ns=self.request.unit_ns,
            constants=self.constants(),
        )

    def constants(self) -> dict[str, int]:
        """The values of the BPF file's own LINK_CONSTANTs."""
        return {}

    def begin(self) -> None:
        """Called after the tracer is attached."""

    def poll(self) -> Iterable[Section]:
        """Sections to print at once; called every 0.1 s."""
        return ()

    def report(self, seconds: float) -> Iterable[Section]:
        """The report on the ``seconds`` since the previous report."""
        raise NotImplementedError

    def why_nothing(self) -> str:
        """The likely reason for a report without events."""
        return self.request.filters.why_nothing()

    def __enter__(self) -> Self:
        self.tracer = self.make()
        self.tracer.__enter__()
        try:
            self.begin()
        except BaseException:
            self.tracer.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.tracer.__exit__(*error)


class HistogramTool(Tool):
    """A tool that reports the histograms that its BPF file record()s; ``HISTOGRAMS`` are their names and titles."""

    HISTOGRAMS: ClassVar[tuple[tuple[str, str], ...]]

    def begin(self) -> None:
        self._before: dict[tuple[int, int], Histogram] = {}

    def report(self, seconds: float) -> Iterable[Section]:
        now = self.tracer.histograms()
        names = self.tracer.names()
        for (which, owner), histogram in sorted(now.items(), key=lambda item: (item[0][1], item[0][0])):
            before = self._before.get((which, owner))
            name, title = self.named(which)
            grown = histogram.since(before) if before else histogram
            yield HistogramSection(name, grown, title, self.owner(owner, names, which))
        self._before = now

    def named(self, which: int) -> tuple[str, str]:
        """The name and the title of histogram number ``which``."""
        return self.HISTOGRAMS[which]

    def owner(self, id: int, names: Mapping[int, str], which: int) -> dict[str, Any]:
        """The breakdown by ``id``, for output."""
        match self.request.by:
            case By.PROCESS:
                return {"pid": id, "comm": names.get(id, "?")}
            case By.THREAD:
                return {"tid": id, "comm": names.get(id, "?")}
            case By.CPU:
                return {"cpu": id}
        return {}
