# SPDX-License-Identifier: Apache-2.0
"""The benchmark's part on tracers: each against the distribution's tool of the same name, under the same load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..loaders.errors import GhostError
from .measure import Row, bpf_stats, perf, programs, summary

_TOOLS = ("runqlat", "cpudist", "offcputime")
_LOAD = "perf bench sched messaging -g 2 -l 100"
_STARTED = b"Hit Ctrl-C"
_FIGURES = {
    "start": ("{} starts", "s"),
    "memory": ("{}, peak memory", "MB"),
    "load": ("messaging, {} on", "s"),
    "ns": ("{}, a run of a program", "ns"),
    "share": ("{}, of all CPU time", "%"),
}


class DoesNotStart(GhostError):
    """A tool ended before it began to trace."""


@dataclass(frozen=True)
class Running:
    """A tool that is tracing: its start-up time, and its programs' ids."""

    seconds: float
    pid: int
    programs: frozenset[int]

    def peak_mb(self) -> float:
        """Its peak memory so far."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def tracers(runs: int) -> list[Row]:
    """Start-up, memory, time per event and the load's slow-down: no tracer, ours and the distribution's, in turn."""
    rows = []
    # The first round fills the page cache and, under emulation, translates the compilers' code: not measured.
    warm_up = 1
    for tool in _TOOLS:
        theirs = shutil.which(f"{tool}-bpfcc") or shutil.which(f"{tool}-bpfcc", path="/usr/sbin")
        if theirs is None:
            raise GhostError(f"{tool}-bpfcc is missing", hint="apt install bpfcc-tools")
        print(f"{tool} …", file=sys.stderr, flush=True)
        rows += _beside(tool, theirs, runs, warm_up)
        warm_up = 0
    return rows


def _beside(tool: str, theirs: str, runs: int, warm_up: int) -> list[Row]:
    alone: list[float] = []
    cold: list[float] = []
    figures: dict[str, dict[str, list[float]]] = {side: {name: [] for name in _FIGURES} for side in ("ours", "theirs")}
    reason = ""
    for run in range(-warm_up, runs):
        with tempfile.TemporaryDirectory() as cache:
            with _ours(tool, cache) as running:
                started = running.seconds
            measured = [("ours", _measure(_ours(tool, cache)))]
        try:
            measured.append(("theirs", _measure(tracing([theirs]))))
        except DoesNotStart as error:
            reason = str(error)
        base = perf(_LOAD)
        if run >= 0:
            alone.append(base)
            cold.append(started)
            for side, result in measured:
                for name, value in result.items():
                    figures[side][name].append(value)
    ours, stock = figures["ours"], figures["theirs"]
    rows = [summary("messaging, no tracer", alone, "s")]
    for name, (what, unit) in _FIGURES.items():
        against = alone if name == "load" else None
        if stock[name]:
            rows.append(summary(what.format(f"{tool}-bpfcc"), stock[name], unit, against))
        if name == "start":
            rows.append(summary(f"{tool} starts, cold", cold, unit, stock[name] or None))
        label = what.format(tool) + (", warm" if name == "start" else "")
        rows.append(summary(label, ours[name], unit, against or stock[name] or None))
    return [*rows, *([{"what": f"{tool}-bpfcc {reason}"}] if reason else [])]


def _measure(tool: contextlib.AbstractContextManager[Running]) -> dict[str, float]:
    """The _FIGURES of one run of a tool, while the load runs twice: without, and with BPF's statistics."""
    with tool as running:
        load = perf(_LOAD)
        with bpf_stats():
            took = perf(_LOAD)
            mine = [p for p in programs() if p["id"] in running.programs]
        spent, count = (sum(p.get(key, 0) for p in mine) for key in ("run_time_ns", "run_cnt"))
        share = 100 * spent / 1e9 / (took * (os.cpu_count() or 1))
        return {
            "start": running.seconds,
            "memory": running.peak_mb(),
            "load": load,
            "ns": spent / count,
            "share": share,
        }


def _ours(tool: str, cache: str | None = None) -> contextlib.AbstractContextManager[Running]:
    command = [sys.executable, "-m", "ghostbpf.tools.cli", "trace", tool]
    return tracing(command, {"XDG_CACHE_HOME": cache} if cache else {})


@contextlib.contextmanager
def tracing(command: list[str], environment: dict[str, str] | None = None) -> Iterator[Running]:
    """``command`` for the block, from the moment it begins to trace until Ctrl-C."""
    before = {p["id"] for p in programs()}
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        try:
            while _STARTED not in os.pread(output.fileno(), 1 << 16, 0):
                if child.poll() is not None:
                    last = os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace").strip().splitlines()
                    raise DoesNotStart(f"does not start ({next(iter(last[-1:]), 'no reason given')[:60]})")
                time.sleep(0.005)
            seconds = time.monotonic() - began
            yield Running(seconds, child.pid, frozenset(p["id"] for p in programs()) - before)
        finally:
            child.send_signal(signal.SIGINT)
            child.wait()
