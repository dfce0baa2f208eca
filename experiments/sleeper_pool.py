# SPDX-License-Identifier: Apache-2.0
"""Tasks for the benchmark's parts on agents: thousands that sleep and wake at once, and some that never stop."""

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
_PATIENCE_S = 60


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
    """A process of ``enclave`` that uses up CPU ``cpu``; killed at the end of a with block."""

    def __init__(self, enclave: Enclave, cpu: int) -> None:
        self.pid = _start([cpu], _spin, enclave.add)


class SleeperPool(_Child):
    """A process with ``count`` threads on ``cpus``, all asleep until wake(); killed at the end of a with block.

    It is in no enclave: add_process() is for whoever wants that. Raises GhostError where there cannot be so many.
    """

    def __init__(self, count: int, cpus: Iterable[int]) -> None:
        self._count = count
        # In turn, so that nobody passes twice where another has not passed once.
        self._gates = deque(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE) for _ in range(2))
        self._passed = os.eventfd(0, os.EFD_CLOEXEC)
        told, tell = os.pipe()
        self.pid = _start(cpus, lambda: _worker(count, tuple(self._gates), self._passed, tell))
        os.close(tell)
        with open(told, "rb") as ready:
            if not ready.read(1):
                raise GhostError(f"there cannot be {count} threads")

    def wake(self) -> None:
        """Have every thread wait for a CPU, all at once; what each does then is to sleep again."""
        os.eventfd_write(self._gates[0], self._count)
        self._gates.rotate()

    def all_passed(self) -> None:
        """Wait until each has come on a CPU since wake(); raises GhostError where for a minute none does."""
        left = self._count
        while left:
            if not select.select([self._passed], [], [], _PATIENCE_S)[0]:
                raise GhostError(f"{left} of {self._count} threads do not come on a CPU")
            left -= os.eventfd_read(self._passed)

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        for fd in (*self._gates, self._passed):
            os.close(fd)


def _start(cpus: Iterable[int], body: Callable[[], object], join: Callable[[int], object] | None = None) -> int:
    """A process that runs ``body`` on ``cpus`` once ``join`` was given its pid, and ends with this one."""
    go, let_go = os.pipe()
    if not (pid := os.fork()):
        _run(go, cpus, body)
    os.close(go)
    try:
        if join is not None:
            join(pid)
        os.write(let_go, b"!")
    except BaseException:
        _kill(pid)
        raise
    finally:
        os.close(let_go)
    return pid


def _run(go: int, cpus: Iterable[int], body: Callable[[], object]) -> NoReturn:
    try:
        libc.set_death_signal(signal.SIGKILL)
        os.sched_setaffinity(0, cpus)
        os.read(go, 1)
        body()
    finally:
        os._exit(1)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _spin() -> None:
    while True:
        pass


def _worker(count: int, gates: tuple[int, ...], passed: int, tell: int) -> None:
    threading.stack_size(_STACK_BYTES)
    # Those that wait for the interpreter sleep until it is free; by default each of them would wake every 5 ms.
    sys.setswitchinterval(_PATIENCE_S)
    there: list[None] = []

    def one() -> None:
        there.append(None)
        for gate in itertools.cycle(gates):
            os.eventfd_read(gate)
            os.eventfd_write(passed, 1)

    for _ in range(count - 1):
        _thread.start_new_thread(one, ())
    while len(there) < count - 1:
        time.sleep(0.01)
    os.write(tell, b"!")
    one()
