# SPDX-License-Identifier: Apache-2.0
"""What a tracer's page of Python is made of."""

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


@dataclass(frozen=True)
class Request:
    """What the command line asks for; ``options`` are the tool's own."""

    filters: Filters = field(default_factory=Filters)
    by: By = By.NOTHING
    unit_ns: int = 1_000
    options: Mapping[str, Any] = field(default_factory=dict)


class Seconds(click.FloatRange):
    """A time that can be waited for."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


class Tool:
    """A tracer: attached by ``with``, then asked for reports. ``ghostbpf trace NAME`` is made of the class."""

    NAME: ClassVar[str]
    SUMMARY: ClassVar[str]
    #: What it says when it starts: "Tracing … Hit Ctrl-C to end."
    TRACES: ClassVar[str]
    EXAMPLES: ClassVar[str] = ""
    OPTIONS: ClassVar[tuple[click.Parameter, ...]] = ()
    #: In place of INTERVAL and COUNT, which then are options of these names.
    ARGUMENTS: ClassVar[tuple[click.Parameter, ...]] = ()
    #: The common filters that it has.
    FILTERS: ClassVar[tuple[str, ...]] = ("pid", "tid", "comm", "cgroup", "enclave", "cpu")
    #: Whether each of these groups of common options means something to it; -m is one.
    BREAKS_DOWN: ClassVar[bool] = True
    PLOTS: ClassVar[bool] = True
    TIMES: ClassVar[bool] = True
    #: Whether it names tasks by the numbers that BPF has of them.
    SHOWS_BPF_IDS: ClassVar[bool] = True

    #: The tracer that reports come from, and its own constants.
    tracer: Tracer

    def __init__(self, request: Request) -> None:
        self.request = request

    def make(self) -> Tracer:
        """The tracer, not yet attached; by default the BPF file with the tool's name."""
        return Tracer(
            self.NAME,
            self.request.filters,
            by=self.request.by,
            unit_ns=self.request.unit_ns,
            constants=self.constants(),
        )

    def constants(self) -> dict[str, int]:
        """The BPF file's own LINK_CONSTANTs."""
        return {}

    def begin(self) -> None:
        """Called once the tracer is attached."""

    def poll(self) -> Iterable[Section]:
        """What is to be printed at once, asked for every tenth of a second."""
        return ()

    def report(self, seconds: float) -> Iterable[Section]:
        """What happened in the last ``seconds``, since the report before this one."""
        raise NotImplementedError

    def why_nothing(self) -> str:
        """Why there may have been nothing to report, as far as can be told."""
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
    """A tool that reports the histograms its BPF file record()s: ``HISTOGRAMS`` are their names and titles."""

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
        """What an id of the breakdown is called."""
        match self.request.by:
            case By.PROCESS:
                return {"pid": id, "comm": names.get(id, "?")}
            case By.THREAD:
                return {"tid": id, "comm": names.get(id, "?")}
            case By.CPU:
                return {"cpu": id}
        return {}
