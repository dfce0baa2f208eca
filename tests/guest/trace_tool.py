# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf trace`` beside a test's workload, and its lines of output."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from command import running
from ghostbpf.tools import trace

_SCHEMA = json.loads(Path(trace.__file__).with_name("schema.json").read_text())


class Trace:
    """The JSON lines of one tracer, complete at the end of its block."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def of(self, type: str, name: str) -> list[dict[str, Any]]:
        """The lines of one type ("histogram", "row") and name."""
        return [line for line in self.lines if line["type"] == type and line["name"] == name]

    def histogram(self, name: str, **by: object) -> dict[str, Any]:
        """The only histogram called ``name`` with these values in its breakdown."""
        (found,) = [line for line in self.of("histogram", name) if by.items() <= line["by"].items()]
        return found

    def rows(self, name: str, **columns: object) -> list[dict[str, Any]]:
        """The rows of table ``name`` that have these values."""
        return [line for line in self.of("row", name) if columns.items() <= line.items()]


@contextlib.contextmanager
def traced(tool: str, *arguments: object) -> Iterator[Trace]:
    """Run ``tool`` during the whole block; it must succeed and drop no event."""
    found = Trace()
    with running("trace", tool, "--json", *arguments) as process:
        process.until(lambda: "Hit Ctrl-C" in process.err)
        yield found
        process.signal(signal.SIGINT)
        done = process.wait()
    assert done.status == 0, done.err
    found.lines = [json.loads(line) for line in done.out.splitlines()]
    for line in found.lines:
        jsonschema.validate(line, _SCHEMA)
    assert found.lines[-1]["type"] == "end"
    assert found.lines[-1]["drops"] == 0
