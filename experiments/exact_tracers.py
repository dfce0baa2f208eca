# SPDX-License-Identifier: Apache-2.0
"""What tracers cost, for ``make bench-exact``: instructions per event, and per operation of pipe under Biff."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import click

from ..tools.record.source import Source
from ..tools.trace.command import TOOLS, command, load
from ..tools.trace.filters import Filters
from ..tools.trace.tool import Request, Tool
from .exact_pipe import OPERATIONS, Join, bpf_runs, pipe
from .exact_report import Figure
from .measure import bpf_stats

#: It needs processes to look at.
_LEFT_OUT = "delays"


def tracer_figures(join: Join) -> Iterator[list[Figure]]:
    """The figures of each tracer, while pipe runs; ``join`` puts a task into the enclave."""
    tracers: dict[str, Callable[[], AbstractContextManager[object]]] = {
        f"trace {name}": functools.partial(_made, name) for name in filter(_LEFT_OUT.__ne__, TOOLS)
    }
    for name, make in {**tracers, "record": Source}.items():
        before = bpf_runs().keys()
        with make(), bpf_stats():
            earlier = bpf_runs()
            pipe(OPERATIONS, join)
            after = bpf_runs()
        yield list(_figures(name, {k: v for k, v in after.items() if k not in before}, earlier))


def _made(name: str) -> Tool:
    """The tool as its command line without options makes it."""
    made = command.get_command(click.Context(command), name)
    assert made is not None
    with made.make_context(name, []) as context:
        return load(name)(Request(Filters(), options=context.params))


def _figures(
    name: str, after: dict[tuple[int, str], tuple[int, int]], before: dict[tuple[int, str], tuple[int, int]]
) -> Iterator[Figure]:
    total = 0
    for key, (count, ns) in sorted(after.items(), key=lambda item: -item[1][1]):
        earlier_count, earlier_ns = before.get(key, (0, 0))
        count, ns = count - earlier_count, ns - earlier_ns
        total += ns
        # A program that does not run for each operation runs too rarely to be exact.
        if count >= OPERATIONS / 10:
            yield Figure(name, "bpf", key[1], "instructions per call", ns / count)
            yield Figure(name, "bpf", key[1], "calls per operation", count / OPERATIONS)
    yield Figure(name, "tracer", "all events", "instructions per operation", total / OPERATIONS)
