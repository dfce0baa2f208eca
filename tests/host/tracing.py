# SPDX-License-Identifier: Apache-2.0
"""Real tasks with known numbers, and tracers that run beside them as users run them.

child = task(lambda: spin(0.1), cpu=1)      # forked, pinned, asleep until start()
with tracing("runqlat", "-t", child.pid) as traced:
    before = child.figures()
    child.run()                             # works once, and sleeps again
assert traced.count() == (child.figures() - before).runs
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
from ghostbpf.loaders import libc
from ghostbpf.tools import trace

#: Seconds; longer than any step takes on a slow machine, so that a timeout means a hang.
DEADLINE = 60.0
SCHEMA = Path(trace.__file__).with_name("schema.json")


def ghostbpf_trace(*arguments: object) -> list[str]:
    """The command line of a tracer, as a user types it."""
    return [sys.executable, "-m", "ghostbpf.tools.cli", "trace", *map(str, arguments)]


def run_trace(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``ghostbpf trace ARGUMENTS`` to its end."""
    return subprocess.run(
        ghostbpf_trace(*arguments), capture_output=True, text=True, timeout=DEADLINE, check=False, **options
    )


def objects(text: str) -> list[dict[str, Any]]:
    """Parse lines of JSON; each must conform to the schema."""
    validator = jsonschema.validators.validator_for(schema := json.loads(SCHEMA.read_text()))(schema)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        validator.validate(line)
    return lines


def complaints(stderr: str) -> list[str]:
    """The lines of a tracer's stderr, but for the one on missed times: the kernel may hide any switch from it."""
    return [line for line in stderr.splitlines() if "(unended)" not in line]


@dataclass
class Traced:
    """The output of a tracer, complete at the end of the with block."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    stderr: str = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every line but the last."""
        return iter(self.lines[:-1])

    @property
    def end(self) -> dict[str, Any]:
        """The last line."""
        assert self.lines[-1]["type"] == "end"
        return self.lines[-1]

    @property
    def missed(self) -> int:
        """The number of times that match and are not counted because an event was missed."""
        return int(self.end["unended"] + self.end["unannounced"])

    def named(self, name: str) -> list[dict[str, Any]]:
        """The lines of the histogram, table or stacks called ``name``."""
        return [line for line in self if line["name"] == name]

    def histogram(self, name: str | None = None, **by: int) -> dict[str, Any]:
        """The only histogram of this name and owner; an empty one if there is none."""
        found = [
            line
            for line in self
            if line["type"] == "histogram"
            and name in (None, line["name"])
            and all(line["by"].get(key) == value for key, value in by.items())
        ]
        assert len(found) <= 1, found
        return found[0] if found else {"count": 0, "avg": 0.0, "max": 0.0, "buckets": []}

    def count(self, name: str | None = None, **by: int) -> int:
        """The number of times in the histogram."""
        return int(self.histogram(name, **by)["count"])

    def seconds(self, name: str | None = None, **by: int) -> float:
        """The sum of the times in the histogram."""
        found = self.histogram(name, **by)
        scale = 1e3 if found.get("unit") == "msecs" else 1e6
        return float(found["count"] * found["avg"] / scale)

    def missed_seconds(self, name: str | None = None, **by: int) -> float:
        """What the missed times of a thread may add up to, if none is longer than the longest in the histogram."""
        found = self.histogram(name, **by)
        scale = 1e3 if found.get("unit") == "msecs" else 1e6
        return float(self.missed * found["max"] / scale)


@contextlib.contextmanager
def tracing(tool: str, *arguments: object) -> Iterator[Traced]:
    """``ghostbpf trace TOOL --json ARGUMENTS`` during the block, ended as by Ctrl-C."""
    traced = Traced()
    command = ghostbpf_trace(tool, "--json", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while not (line := process.stderr.readline()).startswith("Tracing "):
                traced.stderr += line
                assert line, f"{command} ended: {traced.stderr}"
            yield traced
            process.send_signal(signal.SIGINT)
            out, rest = process.communicate(timeout=DEADLINE)
        finally:
            if process.poll() is None:
                process.kill()
    traced.stderr += rest
    assert process.returncode == 0, traced.stderr
    traced.lines = objects(out)


@dataclass(frozen=True)
class Figures:
    """The kernel's own counts of a thread: the three of schedstat, and the switches of status."""

    ran: float
    waited: float
    #: The number of times that it got a CPU.
    runs: int
    blocked: int
    preempted: int
    #: The same for init's threads. Some sandboxes hide their own process, the init, from BPF, and with it each
    #: switch from it to another task.
    hidden: int
    #: Steal time of the CPUs, in seconds: runs are longer by it than the CPU time that they used.
    stolen: float

    @classmethod
    def of(cls, pid: int, tid: int | None = None) -> Figures:
        """The current counts; times in seconds."""
        at = Path(f"/proc/{pid}/task/{tid or pid}")
        ran, waited, runs = _schedstat(at)
        status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines())
        switches = int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"])
        hidden = sum(_schedstat(thread)[2] for thread in Path("/proc/1/task").iterdir())
        cpu = Path("/proc/stat").read_text().splitlines()[0].split()
        stolen = int(cpu[8]) / os.sysconf("SC_CLK_TCK")
        return cls(ran / 1e9, waited / 1e9, runs, *switches, hidden, stolen)

    def __sub__(self, before: Figures) -> Figures:
        return Figures(
            self.ran - before.ran,
            self.waited - before.waited,
            self.runs - before.runs,
            self.blocked - before.blocked,
            self.preempted - before.preempted,
            self.hidden - before.hidden,
            self.stolen - before.stolen,
        )

    @property
    def slack(self) -> float:
        """The tolerance of a tracer's sum of times: a short run for each hidden switch."""
        return 0.002 * self.hidden + self.stolen

    def has(self, count: int, runs: int | None = None) -> bool:
        """Whether ``count`` is the number of all runs, or of ``runs``, without the few that were hidden."""
        runs = self.runs if runs is None else runs
        return max(runs - self.hidden, 0.8 * runs - 1) <= count <= runs


def _schedstat(thread: Path) -> tuple[int, int, int]:
    ran, waited, runs = map(int, (thread / "schedstat").read_text().split())
    return ran, waited, runs


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll until the condition is true; AssertionError after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.001)


def is_asleep(pid: int, tid: int | None = None) -> bool:
    """Whether the task is in a system call and off its runqueue; the kernel waits for that before it answers.

    /proc/TID/syscall also shows a woken task that its new CPU has not yet enqueued, so ``stat`` must not say R.
    """
    thread = Path(f"/proc/{pid}/task/{tid or pid}")
    is_runnable = b") R " in (thread / "stat").read_bytes()
    return not is_runnable and not (thread / "syscall").read_text().startswith("running")


def spin(cpu_seconds: float) -> None:
    """Use ``seconds`` of CPU time of this thread."""
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


def spin_until(condition: Callable[[], object]) -> None:
    """Spin until ``condition()`` is true."""
    while not condition():
        pass


def spin_for(seconds: float) -> Callable[[], None]:
    """A body that spins for ``seconds`` of wall-clock time."""

    def work() -> None:
        end = time.monotonic() + seconds
        spin_until(lambda: time.monotonic() >= end)

    return work


def be_fifo() -> None:
    """Set SCHED_FIFO with the lowest priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


class Task:
    """A forked child pinned to ``cpu``: it sleeps until start(), does ``work``, and sleeps again."""

    def __init__(self, work: Callable[[], object], cpu: int | None = None, name: str | None = None) -> None:
        gate, self._gate = os.pipe()
        self._done, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _child(work, gate, done, cpu, name)
        os.close(gate)
        os.close(done)
        assert os.read(self._done, 1) == b"r"
        self.sleeps()

    def sleeps(self) -> None:
        """Wait until it sleeps."""
        wait_until(lambda: is_asleep(self.pid), f"{self.pid} sleeps")

    def start(self) -> None:
        """Let it do its work once."""
        os.write(self._gate, b"!")

    def finish(self) -> None:
        """Wait until it has done its work and sleeps; AssertionError if the work failed."""
        assert os.read(self._done, 1) == b".", f"task {self.pid} failed"
        self.sleeps()

    def run(self) -> None:
        """Let it do its work, and wait until it is done."""
        self.start()
        self.finish()

    def figures(self) -> Figures:
        """The kernel's counts of it."""
        return Figures.of(self.pid)

    def kill(self) -> None:
        """Kill it; does nothing if it has ended."""
        if self._done >= 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._gate)
            os.close(self._done)
            self._done = -1


def _child(work: Callable[[], object], gate: int, done: int, cpu: int | None, name: str | None) -> NoReturn:
    try:
        libc.set_death_signal(signal.SIGKILL)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        if name is not None:
            Path("/proc/self/comm").write_text(name)
        os.write(done, b"r")
        while os.read(gate, 1):
            work()
            os.write(done, b".")
    except BaseException:
        traceback.print_exc()
        os.write(done, b"x")
    finally:
        os._exit(1)


def run_together(tasks: Iterable[Task]) -> None:
    """Let all tasks do their work at once, and wait for all."""
    tasks = list(tasks)
    for one in tasks:
        one.start()
    for one in tasks:
        one.finish()


def only(rows: Iterable[Mapping[str, Any]], **values: object) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]
