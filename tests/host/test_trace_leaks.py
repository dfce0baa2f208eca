# SPDX-License-Identifier: Apache-2.0
"""Tracers leave nothing behind: no descriptor, no program, no map."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.tools.trace.command import TOOLS, command, load
from ghostbpf.tools.trace.filters import By, Filters
from ghostbpf.tools.trace.runqlat import TOOL as RUNQLAT
from ghostbpf.tools.trace.tool import Request, Tool

TIMES = 50

#: dsqlat needs a kernel with sched_ext.
NAMES = [name for name in TOOLS if name != "dsqlat"]

KernelObjects = Callable[[], set[str]]


@pytest.fixture
def kernel_objects(bpftool: Callable[..., Any]) -> KernelObjects:
    """All programs and maps in the kernel."""

    def look() -> set[str]:
        return {f"{kind} {one.get('name')} {one['id']}" for kind in ("prog", "map") for one in bpftool(kind, "show")}

    return look


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Disable garbage collection: an object that only the collector closes is a leak."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make(name: str, number: int = 0) -> Tool:
    """The tool with its default options, and a breakdown."""
    tool = load(name)
    made = command.get_command(click.Context(command), name)
    assert made is not None
    with made.make_context(name, [str(os.getpid())] if name == "delays" else []) as context:
        options = context.params
    by = By(number % 4) if tool.BREAKS_DOWN else By.NOTHING
    return tool(Request(Filters(comm=f"nobody{number}"), by, options=options))


@pytest.mark.soak
def test_fifty_traces_leave_nothing_behind(
    bcc: None,
    no_collection: None,
    open_fds: Callable[[], dict[int, str]],
    kernel_objects: KernelObjects,
    until: Callable[[Callable[[], bool]], bool],
) -> None:
    # The first run of each tool imports modules and caches the kernel's BTF.
    for name in NAMES:
        with make(name) as tool:
            list(tool.report(1.0))
    fds, objects = open_fds(), kernel_objects()
    for number in range(TIMES):
        with make(NAMES[number % len(NAMES)], number) as tool:
            list(tool.report(1.0))
            assert len(open_fds()) > len(fds)
    assert open_fds() == fds
    assert until(lambda: kernel_objects() <= objects), kernel_objects() - objects


class Broken(RUNQLAT):
    """Fails after it is attached."""

    def begin(self) -> None:
        raise GhostError("broken")


def test_tool_that_cannot_begin_leaves_nothing_behind(
    bcc: None,
    no_collection: None,
    open_fds: Callable[[], dict[int, str]],
    kernel_objects: KernelObjects,
    until: Callable[[Callable[[], bool]], bool],
) -> None:
    with make("runqlat"):
        pass
    fds, objects = open_fds(), kernel_objects()
    with pytest.raises(GhostError, match="broken"):
        Broken(Request()).__enter__()
    assert open_fds() == fds
    assert until(lambda: kernel_objects() <= objects), kernel_objects() - objects
