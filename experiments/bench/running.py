# SPDX-License-Identifier: Apache-2.0
"""One run of a workload: started under a scheduler, watched until its end, and measured."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ...schedulers.launch import termination_signals
from ..candidates import Attached
from .noise import Watch, is_noisy, tree_seconds
from .workloads import Metric, Result, Workload

_POLL_S = 0.2
#: Of the output of a workload that failed.
_SHOWN = 600


class Interrupted(Exception):
    """Signal ``number`` asked the benchmark to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Measurement:
    """The figures of one run, which took ``seconds``; ``others`` is how many CPUs other processes used meanwhile."""

    metrics: list[Metric]
    seconds: float
    others: float

    @property
    def is_noisy(self) -> bool:
        """Whether other processes used so much that the figures are marked."""
        return is_noisy(self.others, self.seconds)


def interruption() -> None:
    """Raise Interrupted if a termination signal is pending; these signals must be blocked."""
    if pending := signal.sigpending() & termination_signals():
        raise Interrupted(min(pending))


def run(workload: Workload, scheduler: Attached, cpus: CpuSet, limit_s: float) -> Measurement:
    """Run ``workload`` once on ``cpus`` under ``scheduler``; termination signals and SIGCHLD must be blocked.

    Raises SchedulerLost if the scheduler was not in charge throughout, Interrupted, and GhostError if the workload
    failed, printed no figures, or did not end within ``limit_s``.
    """
    words = workload.command(len(cpus))
    with tempfile.TemporaryDirectory(prefix="ghostbpf-bench-") as name, tempfile.TemporaryFile() as output:
        directory = Path(name)
        workload.prepare(directory)
        with _Process(words, None if workload.stays else directory, output.fileno()) as process:
            os.sched_setaffinity(process.pid, set(cpus))
            if scheduler.join is not None:
                scheduler.join(process.pid)
            watch = Watch(lambda: tree_seconds(scheduler.pid) if scheduler.pid is not None else 0.0)
            process.go()
            while not process.ended(_POLL_S):
                scheduler.check()
                if process.seconds > limit_s:
                    raise GhostError(f"{workload.text} did not end within {limit_s:.0f} s")
            others = watch.others(process.cpu_seconds)
        scheduler.check()
        output.seek(0)
        text = output.read().decode(errors="replace")
        if process.status:
            end = f"status {process.status}: {text.strip()[-_SHOWN:] or 'it printed nothing'}"
            raise GhostError(f"{shlex.join(words)} ended with {end}")
        metrics = workload.metrics(Result(text, process.seconds, directory))
    return Measurement(metrics, process.seconds, others)


class _Process:
    """A command in a session of its own, which waits for go(); what is left of it is killed at the end of a block."""

    def __init__(self, words: Sequence[str], directory: Path | None, output: int) -> None:
        self._child = subprocess.Popen(
            ["sh", "-c", 'read go && exec "$@"', "sh", *words],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
        )
        self.pid, self.status, self.cpu_seconds = self._child.pid, 0, 0.0
        self._began = self._ended = 0.0

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if not self._ended:
            self._reap(os.wait4(self.pid, 0))
        if self._child.stdin is not None:
            self._child.stdin.close()

    @property
    def seconds(self) -> float:
        """The time since go(), until its end."""
        return (self._ended or time.monotonic()) - self._began

    def go(self) -> None:
        """Let it execute the command, with an empty stdin."""
        assert self._child.stdin is not None
        self._began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has been killed, which its status will say
            self._child.stdin.write(b"go\n")
            self._child.stdin.close()

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for its end; raises Interrupted."""
        if self._poll():
            return True
        info = signal.sigtimedwait({signal.SIGCHLD, *termination_signals()}, timeout)
        if info is not None and info.si_signo != signal.SIGCHLD:
            raise Interrupted(info.si_signo)
        return self._poll()

    def _poll(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self._reap((pid, status, usage))
        return bool(pid)

    def _reap(self, reaped: tuple[int, int, struct_rusage]) -> None:
        self._ended = time.monotonic()
        _, status, usage = reaped
        # Popen does not wait for a child with a known status.
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self.status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
