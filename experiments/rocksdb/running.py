# SPDX-License-Identifier: Apache-2.0
"""One measurement: RocksDB, the antagonist, or both, started under a scheduler, watched, and read."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ..bench.noise import Watch, is_noisy, tree_seconds
from ..bench.running import interruption
from ..candidates import Attached
from .options import EEVDF, AntagonistOptions, Placement, RocksdbOptions
from .programs import ANTAGONIST, ROCKSDB

_POLL_S = 0.2
#: How long a program may take to start, and to end after its time; an emulated machine is slow.
_START_S, _END_S = 600.0, 300.0


class Application:
    """A program that prints "ready", begins after a line on its stdin, and prints JSON at its end.

    What is left of it at the end of a block is killed.
    """

    def __init__(self, name: str, words: Sequence[str], scheduler: Attached, cpus: CpuSet) -> None:
        self._name, self._scheduler = name, scheduler
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            ["sh", "-c", 'read go && exec "$@"', "sh", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
        )
        self.pid = self._child.pid
        self._output = b""
        self.cpu_seconds = 0.0
        try:
            os.sched_setaffinity(self.pid, set(cpus))
            if scheduler.join is not None:
                scheduler.join(self.pid)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def prepare(self) -> None:
        """Start it, and wait until all its threads are there."""
        self.go()
        self._read(_START_S, until=b"ready\n")

    def go(self) -> None:
        """Let it begin."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its output will say why
            self._child.stdin.write(b"go\n")
            self._child.stdin.flush()

    def result(self, seconds: float) -> Any:
        """Wait for its end, which is due in ``seconds``, and return what it has printed; raises GhostError."""
        self._read(seconds + _END_S, until=None)
        _, status, usage = os.wait4(self.pid, 0)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self._child.returncode = os.waitstatus_to_exitcode(status)
        text = self._output.partition(b"ready\n")[2]
        try:
            return json.loads(text)
        except ValueError:
            raise self._failure() from None

    def _read(self, limit_s: float, until: bytes | None) -> None:
        """Read its output until ``until`` or its end; raises Interrupted, SchedulerLost, and GhostError."""
        assert self._child.stdout is not None
        ends = time.monotonic() + limit_s
        while until is None or not self._output.endswith(until):
            interruption()
            self._scheduler.check()
            if time.monotonic() > ends:
                raise GhostError(f"{self._name} did not {'end' if until is None else 'start'} within {limit_s:.0f} s")
            if not select.select([self._child.stdout], [], [], _POLL_S)[0]:
                continue
            if piece := os.read(self._child.stdout.fileno(), 1 << 16):
                self._output += piece
            elif until is None:
                return
            else:
                raise self._failure()

    def _failure(self) -> GhostError:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().removeprefix("error: ")
        status = self._child.poll()
        return GhostError(
            f"{self._name}: {said}" if said else f"{self._name} ended with status {status}, and said nothing"
        )


def measure(
    rocksdb: RocksdbOptions | None,
    antagonist: AntagonistOptions | None,
    scheduler: Attached,
    placement: Placement,
) -> dict[str, Any]:
    """Run the applications together under ``scheduler``; termination signals must be blocked.

    Returns the results of both, None for one that did not run, whether the scheduler has a table of hints, and how many
    CPUs other processes used meanwhile.
    Raises SchedulerLost if the scheduler was not in charge throughout, Interrupted, and GhostError.
    """
    hints = _hints(scheduler)
    results: dict[str, Any] = {"rocksdb": None, "antagonist": None}
    with contextlib.ExitStack() as stack:
        started: list[tuple[str, Application, float]] = []
        for name, application, seconds in _applications(rocksdb, antagonist, scheduler, placement, hints):
            stack.enter_context(application)
            # One after the other: the antagonist, which takes all CPUs, comes last.
            application.prepare()
            started.append((name, application, seconds))
        watch = Watch(lambda: tree_seconds(scheduler.pid) if scheduler.pid is not None else 0.0)
        earlier = sum(tree_seconds(application.pid) for _, application, _ in started)
        began = time.monotonic()
        for _, application, _ in started:
            application.go()
        for name, application, seconds in started:
            results[name] = application.result(seconds)
        others = watch.others(sum(application.cpu_seconds for _, application, _ in started) - earlier)
        scheduler.check()
    took = time.monotonic() - began
    return {**results, "has_hints": hints is not None, "others": round(others, 3), "noisy": is_noisy(others, took)}


def _applications(
    rocksdb: RocksdbOptions | None,
    antagonist: AntagonistOptions | None,
    scheduler: Attached,
    placement: Placement,
    hints: str | None,
) -> Iterator[tuple[str, Application, float]]:
    """The applications, each with its name and the time that it takes once it has begun."""
    cpus = CpuSet({placement.generator, *placement.enclave})
    if rocksdb is not None:
        words = rocksdb.words(placement, hints)
        where = cpus if rocksdb.scheduler == EEVDF else placement.enclave
        seconds = (rocksdb.discard_duration + rocksdb.experiment_duration) / 1e9
        yield "rocksdb", Application("rocksdb", [str(ROCKSDB.path()), *words], scheduler, where), seconds
    if antagonist is not None:
        where = placement.enclave
        words = antagonist.words(sorted(where), hints)
        seconds = (antagonist.discard_duration + antagonist.experiment_duration) / 1e9
        yield "antagonist", Application("antagonist", [str(ANTAGONIST.path()), *words], scheduler, where), seconds


def _hints(scheduler: Attached) -> str | None:
    """The path of the table of hints, if the scheduler reads one."""
    path: Path | None = scheduler.enclave.hints_path if scheduler.enclave is not None else None
    return str(path) if path is not None and path.exists() else None
