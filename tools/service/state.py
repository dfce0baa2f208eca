# SPDX-License-Identifier: Apache-2.0
"""The one service of this machine: its lock, and what it tells other commands."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ...loaders.errors import GhostError
from .applied import run_directory

_LOCK = struct.Struct("@hhqqi4x")  # struct flock


@dataclass(frozen=True)
class ServiceState:
    """A service that runs: its process, its file, the profile that holds (None: none), and what it does, in words."""

    pid: int
    file: str
    profile: str | None
    status: str


class ServiceRuns(GhostError):
    """Another service runs already."""

    def __init__(self, running: ServiceState | None) -> None:
        what = f"process {running.pid}, with {running.file}" if running else "which has just started"
        super().__init__(
            f"a service runs already: {what}",
            hint="add to its file, and: systemctl reload ghostbpf; or first: systemctl stop ghostbpf",
        )
        self.running = running


class StateFile:
    """The file with this service's state; holding it open and locked makes this process the service."""

    def __init__(self, fd: int) -> None:
        self._fd, self._written = fd, b""

    @classmethod
    @contextlib.contextmanager
    def hold(cls) -> Iterator[StateFile]:
        """Be the service for the block; raises ServiceRuns if another process is."""
        path = _path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise GhostError(f"cannot write {path}: {error.strerror}", hint="run it with sudo") from None
        try:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK))
            except BlockingIOError:
                raise ServiceRuns(read()) from None
            os.ftruncate(fd, 0)
            yield cls(fd)
        finally:
            os.close(fd)

    def write(self, state: ServiceState) -> None:
        """Tell other commands."""
        if (text := json.dumps(asdict(state)).encode()) != self._written:
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
            self._written = text


def read() -> ServiceState | None:
    """The service that runs; None if none does."""
    with contextlib.suppress(OSError, ValueError, TypeError), open(_path(), encoding="utf-8") as file:
        # This asks for the lock and does not take it: a service that starts meanwhile gets it.
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _lock(fcntl.F_RDLCK))
        if _LOCK.unpack(answer)[0] == fcntl.F_WRLCK:
            return ServiceState(**json.loads(file.read()))
    return None


def _lock(kind: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _path() -> Path:
    return run_directory() / "service.json"
