# SPDX-License-Identifier: Apache-2.0
"""Tasks for the benchmark's parts on agents: thousands that sleep and wake at once, and some that spin."""

from __future__ import annotations

import _thread
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn, Self

from ..loaders import libc
from ..loaders.errors import GhostError
from ..schedulers.enclave import Enclave

_STACK_BYTES = 64 << 10
_TIMEOUT_S = 60


class _Child:
    """A process, killed at the end of a with block."""

    pid: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _kill(self.pid)


class Spinner(_Child):
    """A process of ``enclave`` that spins on CPU ``cpu``; killed at the end of a with block."""

    def __init__(self, enclave: Enclave, cpu: int) -> None:
        self.pid = _start([cpu], _spin, enclave.add)


class SleeperPool(_Child):
    """A process with ``count`` threads on ``cpus``, all asleep until wake(); killed at the end of a with block.

    It is in no enclave until the caller adds it. Raises GhostError if so many threads cannot be made.
    """

    def __init__(self, count: int, cpus: Iterable[int]) -> None:
        self._count = count
        # Used in turn, so that no thread passes twice before every thread has passed once.
        self._gates = deque(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE) for _ in range(2))
        self._passed = os.eventfd(0, os.EFD_CLOEXEC)
        ready_out, ready_in = os.pipe()
        self.pid = _start(cpus, lambda: _worker(count, tuple(self._gates), self._passed, ready_in))
        os.close(ready_in)
        with open(ready_out, "rb") as ready:
            if not ready.read(1):
                raise GhostError(f"cannot start {count} threads")

    def wake(self) -> None:
        """Wake every thread at once; each then sleeps again."""
        os.eventfd_write(self._gates[0], self._count)
        self._gates.rotate()

    def all_passed(self) -> None:
        """Wait until every thread has run since wake(); raises GhostError if for a minute none does."""
        left = self._count
        while left:
            if not select.select([self._passed], [], [], _TIMEOUT_S)[0]:
                raise GhostError(f"{left} of {self._count} threads do not get a CPU")
            left -= os.eventfd_read(self._passed)

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        for fd in (*self._gates, self._passed):
            os.close(fd)


def _start(cpus: Iterable[int], body: Callable[[], object], join: Callable[[int], object] | None = None) -> int:
    """A process that runs ``body`` on ``cpus``, after ``join`` was called with its pid; it ends with this process."""
    gate_out, gate_in = os.pipe()
    if not (pid := os.fork()):
        _run(gate_out, cpus, body)
    os.close(gate_out)
    try:
        if join is not None:
            join(pid)
        os.write(gate_in, b"!")
    except BaseException:
        _kill(pid)
        raise
    finally:
        os.close(gate_in)
    return pid


def _run(gate: int, cpus: Iterable[int], body: Callable[[], object]) -> NoReturn:
    try:
        libc.set_death_signal(signal.SIGKILL)
        os.sched_setaffinity(0, cpus)
        os.read(gate, 1)
        body()
    finally:
        os._exit(1)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _spin() -> None:
    while True:
        pass


def _worker(count: int, gates: tuple[int, ...], passed: int, ready: int) -> None:
    threading.stack_size(_STACK_BYTES)
    # Threads that wait for the interpreter lock wake every switch interval, 5 ms by default: avoid that.
    sys.setswitchinterval(_TIMEOUT_S)
    started: list[None] = []

    def thread() -> None:
        started.append(None)
        for gate in itertools.cycle(gates):
            os.eventfd_read(gate)
            os.eventfd_write(passed, 1)

    for _ in range(count - 1):
        _thread.start_new_thread(thread, ())
    while len(started) < count - 1:
        time.sleep(0.01)
    os.write(ready, b"!")
    thread()
