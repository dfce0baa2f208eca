# SPDX-License-Identifier: Apache-2.0
"""What tracers report: histograms, tables and stacks, each as text and as JSON objects (see schema.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..output import printable, table
from .histogram import Distribution


class Section(Protocol):
    """A part of a report."""

    def text(self) -> str:
        """For people."""
        ...

    def json(self) -> Iterator[dict[str, Any]]:
        """For programs: objects without the fields that every line has."""
        ...

    @property
    def events(self) -> int:
        """How much there is in it; nothing, and it is not printed."""
        ...


@dataclass(frozen=True)
class HistogramSection:
    """A histogram; ``name`` tells it from the tool's others, ``by`` says whose it is, as {"pid": 185, "comm": "sh"}."""

    name: str
    histogram: Distribution
    title: str = ""
    by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return self.histogram.count

    @property
    def label(self) -> str:
        """Whose it is, on one line."""
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
    """Rows with the same keys, the first ``top`` of them for people (0: all).

    ``picture`` is printed in their place where it says it better.
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
    """A stack from the innermost frame out, and the time spent under it."""

    frames: Sequence[str]
    comm: str
    pid: int
    usecs: int
    count: int


@dataclass(frozen=True)
class Stacks:
    """Stacks and their times; ``folded`` is one a line for flame graphs: outermost;…;innermost usecs."""

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
    """A name without the character that parts frames."""
    return printable(name).replace(";", r"\x3b")
