# SPDX-License-Identifier: Apache-2.0
"""Real tasks whose numbers are known, and tracers run beside them as users run them.

child = task(lambda: spin(0.1), cpu=1)      # forked, pinned, asleep until it is let go
with tracing("runqlat", "-t", child.pid) as traced:
    before = child.figures()
    child.run()                             # let go, and asleep again after that
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

#: Long enough for any slow machine: reaching it means that something hangs.
DEADLINE = 60.0
SCHEMA = Path(trace.__file__).with_name("schema.json")


def ghostbpf_trace(*arguments: object) -> list[str]:
    """The command line that a user would type."""
    return [sys.executable, "-m", "ghostbpf.tools.cli", "trace", *map(str, arguments)]


def run_trace(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """``ghostbpf trace ARGUMENTS``, to its end."""
    return subprocess.run(
        ghostbpf_trace(*arguments), capture_output=True, text=True, timeout=DEADLINE, check=False, **options
    )


def objects(text: str) -> list[dict[str, Any]]:
    """Lines of JSON, each as the schema says."""
    validator = jsonschema.validators.validator_for(schema := json.loads(SCHEMA.read_text()))(schema)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        validator.validate(line)
    return lines


@dataclass
class Traced:
    """What a tracer printed; filled in when its with block is left."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    stderr: str = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines, but the last."""
        return iter(self.lines[:-1])

    @property
    def end(self) -> dict[str, Any]:
        """The last line."""
        assert self.lines[-1]["type"] == "end"
        return self.lines[-1]

    @property
    def missed(self) -> int:
        """How many times are not in the figures because an event was missed, of all that match."""
        return int(self.end["unended"] + self.end["unannounced"])

    def named(self, name: str) -> list[dict[str, Any]]:
        """The lines of the histogram, table or stacks called ``name``."""
        return [line for line in self if line["name"] == name]

    def histogram(self, name: str | None = None, **by: int) -> dict[str, Any]:
        """The only histogram of this name, of that owner; one of nothing where there is none."""
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
        """How many times are in it."""
        return int(self.histogram(name, **by)["count"])

    def seconds(self, name: str | None = None, **by: int) -> float:
        """The sum of the times in it."""
        found = self.histogram(name, **by)
        scale = 1e3 if found.get("unit") == "msecs" else 1e6
        return float(found["count"] * found["avg"] / scale)


@contextlib.contextmanager
def tracing(tool: str, *arguments: object) -> Iterator[Traced]:
    """``ghostbpf trace TOOL --json ARGUMENTS`` for the length of the block, ended as by Ctrl-C."""
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
    """What the kernel itself counts of a thread: schedstat's three, and its switches from status."""

    ran: float
    waited: float
    #: How many times it came on a CPU.
    runs: int
    blocked: int
    preempted: int
    #: How many times init's threads did. Some sandboxes hide their own process, the init, from BPF, and with it each
    #: switch from it to another task.
    hidden: int
    #: What a hypervisor took from the CPUs, in seconds: runs are longer by it than the CPU time that they used.
    stolen: float

    @classmethod
    def of(cls, pid: int, tid: int | None = None) -> Figures:
        """As they are now; times in seconds."""
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
        """How much a tracer's sum of times may be off for want of what was hidden: a short run for each switch."""
        return 0.002 * self.hidden + self.stolen

    def has(self, count: int, runs: int | None = None) -> bool:
        """Whether a tracer that has seen ``count`` runs has seen all, or ``runs``, but those that were hidden: few."""
        runs = self.runs if runs is None else runs
        return max(runs - self.hidden, 0.8 * runs - 1) <= count <= runs


def _schedstat(thread: Path) -> tuple[int, int, int]:
    ran, waited, runs = map(int, (thread / "schedstat").read_text().split())
    return ran, waited, runs


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll until the condition holds; AssertionError after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.001)


def is_asleep(pid: int, tid: int | None = None) -> bool:
    """Whether it is in a system call and off its run queue; the kernel makes sure of that before it answers.

    It takes a task for asleep, though, that has been woken for a CPU which has not taken it in yet: ``stat`` says R.
    """
    thread = Path(f"/proc/{pid}/task/{tid or pid}")
    is_runnable = b") R " in (thread / "stat").read_bytes()
    return not is_runnable and not (thread / "syscall").read_text().startswith("running")


def spin(cpu_seconds: float) -> None:
    """Use so much CPU time, by the thread's own clock."""
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


def spin_until(condition: Callable[[], object]) -> None:
    """Keep the CPU until ``condition()`` is true."""
    while not condition():
        pass


def spin_for(seconds: float) -> Callable[[], None]:
    """Spin for so long by the clock on the wall, whoever else has the CPU."""

    def work() -> None:
        end = time.monotonic() + seconds
        spin_until(lambda: time.monotonic() >= end)

    return work


def be_fifo() -> None:
    """Become a task of SCHED_FIFO, lowest priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


class Task:
    """A forked child: pinned to ``cpu``, it sleeps until it is let go, does ``work`` and sleeps again."""

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
        """Wait until it does."""
        wait_until(lambda: is_asleep(self.pid), f"{self.pid} sleeps")

    def go(self) -> None:
        """Let it do its work, once more if it has done it already."""
        os.write(self._gate, b"!")

    def finish(self) -> None:
        """Wait until it has done its work and sleeps; AssertionError if that failed."""
        assert os.read(self._done, 1) == b".", f"task {self.pid} failed"
        self.sleeps()

    def run(self) -> None:
        """Let it do its work, to the end."""
        self.go()
        self.finish()

    def figures(self) -> Figures:
        """What the kernel counts of it."""
        return Figures.of(self.pid)

    def kill(self) -> None:
        """End it; a second time is no error."""
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
    """Let all do their work at once, and wait for all."""
    tasks = list(tasks)
    for one in tasks:
        one.go()
    for one in tasks:
        one.finish()


def only(rows: Iterable[Mapping[str, Any]], **values: object) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]
