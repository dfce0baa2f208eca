# SPDX-License-Identifier: Apache-2.0
"""Common parts of the benchmark: medians and ratios, perf's workloads, the kernel's statistics."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..loaders.errors import GhostError

MESSAGING = "perf bench sched messaging -g 4 -l 100"
PIPE = "perf bench sched pipe -l 5000"

Row = dict[str, Any]


def summary(what: str, values: list[float], unit: str, against: list[float] | None = None) -> Row:
    """Median, minimum and maximum; with ``against``, also the median of the ratios of each pair.

    The machine's speed drifts, and the values of one pair were measured next to each other.
    """
    ratio = statistics.median(a / b for a, b in zip(values, against, strict=True)) if against is not None else None
    return {
        "what": what,
        "median": statistics.median(values),
        "unit": unit,
        "min": min(values),
        "max": max(values),
        "runs": len(values),
        "ratio": ratio,
    }


def perf(workload: str, join: Callable[[int], object] | None = None) -> float:
    """Run a perf benchmark, after ``join`` was called with its pid; returns the seconds that it reports."""
    output = perf_output(workload, join)
    match = re.search(r"Total time: ([\d.]+)", output)
    if match is None:
        raise GhostError(f"{workload} reported no time: {output[-200:]}")
    return float(match[1])


def perf_output(workload: str, join: Callable[[int], object] | None = None) -> str:
    """Run a perf benchmark, after ``join`` was called with its pid; returns what it prints."""
    child = subprocess.Popen(
        ["sh", "-c", f"read go; exec {workload} 2>&1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if join is not None:
        join(child.pid)
    return child.communicate(b"go\n")[0].decode()


def in_child(body: Callable[[], Any]) -> Any:
    """Call ``body`` in a child process; returns its result, passed as JSON. Raises GhostError if it fails."""
    receiver, sender = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            os.write(sender, json.dumps(body()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(sender)
    with open(receiver, encoding="utf-8") as result:
        text = result.read()
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise GhostError(f"a part of the benchmark ended with status {status}")
    return json.loads(text)


def timed(command: list[str]) -> float:
    """The seconds that ``command`` takes; raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    """Let the kernel count the runs of each BPF program and their time, for the block."""
    knob = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = knob.read_text(encoding="utf-8")
    knob.write_text("1", encoding="utf-8")
    try:
        yield
    finally:
        knob.write_text(before, encoding="utf-8")


def programs() -> list[dict[str, Any]]:
    """The kernel's BPF programs, as ``bpftool -j prog show`` prints them."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True).stdout
    rows: list[dict[str, Any]] = json.loads(shown)
    return rows
