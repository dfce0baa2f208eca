# SPDX-License-Identifier: Apache-2.0
"""Sections of reports: histograms, tables and stacks, as text and as JSON objects (see schema.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..output import printable, table
from .histogram import Distribution


class Section(Protocol):
    """A part of a report."""

    def text(self) -> str:
        """The section as text."""
        ...

    def json(self) -> Iterator[dict[str, Any]]:
        """The section as JSON objects, without the fields that each line has."""
        ...

    @property
    def events(self) -> int:
        """The number of events; a section without events is not printed."""
        ...


@dataclass(frozen=True)
class HistogramSection:
    """A histogram; ``name`` identifies it among the tool's, ``by`` is its breakdown, as {"pid": 185, "comm": "sh"}."""

    name: str
    histogram: Distribution
    title: str = ""
    by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return self.histogram.count

    @property
    def label(self) -> str:
        """The breakdown on one line."""
        return " ".join(printable(value) if key == "comm" else f"{key} = {value}" for key, value in self.by.items())

    def text(self) -> str:
        heads = [line for line in (self.title, self.label) if line]
        return "\n".join([*heads, self.histogram.text()])

    def json(self) -> Iterator[dict[str, Any]]:
        h = self.histogram
        yield {
            "type": "histogram",
            "name": self.name,
            "by": dict(self.by),
            "unit": h.unit,
            "count": h.count,
            **{name: round(value, 3) for name, value in h.summary().items()},
            "buckets": [{"from": row.low, "to": row.high, "count": row.count} for row in h.rows()],
        }


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, of which text has the first ``top`` (0: all).

    ``picture``, if set, is the text in place of the table.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    title: str = ""
    picture: str = ""
    top: int = 0

    @property
    def events(self) -> int:
        return len(self.rows)

    def text(self) -> str:
        rows = self.rows[: self.top or None]
        body = self.picture or table(rows)
        return f"{self.title}\n{body}" if self.title else body

    def json(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            yield {"type": "row", "name": self.name, **row}


@dataclass(frozen=True)
class Stack:
    """A stack, innermost frame first, and the time spent in it."""

    frames: Sequence[str]
    comm: str
    pid: int
    usecs: int
    count: int


@dataclass(frozen=True)
class Stacks:
    """Stacks and their times; ``folded`` is one line for each, for flame graphs: outermost;…;innermost usecs."""

    name: str
    stacks: Sequence[Stack]
    folded: bool = False

    @property
    def events(self) -> int:
        return len(self.stacks)

    def text(self) -> str:
        if self.folded:
            return "\n".join(
                f"{';'.join(map(_foldable, (s.comm, *reversed(s.frames))))} {s.usecs}" for s in self.stacks
            )
        return "\n\n".join(
            "\n".join(
                [
                    *(f"    {printable(frame)}" for frame in s.frames),
                    f"    -  {printable(s.comm)} ({s.pid})",
                    f"        {s.usecs}",
                ]
            )
            for s in self.stacks
        )

    def json(self) -> Iterator[dict[str, Any]]:
        for s in self.stacks:
            yield {
                "type": "stack",
                "name": self.name,
                "comm": s.comm,
                "pid": s.pid,
                "usecs": s.usecs,
                "count": s.count,
                "frames": list(s.frames),
            }


def _foldable(name: str) -> str:
    """A name without the separator of frames."""
    return printable(name).replace(";", r"\x3b")
