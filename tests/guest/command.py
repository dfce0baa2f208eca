# SPDX-License-Identifier: Apache-2.0
"""The ``ghostbpf`` command without a new interpreter, which takes seconds in an emulated guest.

A fork of the test process runs the same ``main()`` as the installed command, in a process group of its own and
with its own standard streams and signal handlers.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ghostbpf.loaders import compiler, libc
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.loaders.capabilities import NUMBERS as CAPABILITIES
from ghostbpf.schedulers import core
from ghostbpf.schedulers.policy import Policy
from ghostbpf.tools import cli
from workload import present_cpus

TIMEOUT = 120.0
_PR_CAPBSET_DROP = 24


@dataclass(frozen=True)
class Done:
    """The result of a command: its exit status as in a shell, and its output."""

    status: int
    out: str
    err: str


class Running:
    """A running command; it leads its own process group."""

    def __init__(self, pid: int, streams: tuple[int, int]) -> None:
        self.pid, self._streams = pid, streams
        self._pidfd = os.pidfd_open(pid)

    @property
    def out(self) -> str:
        """Its output on stdout so far."""
        return _text(self._streams[0])

    @property
    def err(self) -> str:
        """Its output on stderr so far."""
        return _text(self._streams[1])

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send it a signal; with ``group``, to its children as well, as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, number)

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for its end; returns whether it has ended."""
        return bool(select.select([self._pidfd], [], [], timeout)[0])

    def until(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        """Wait for ``condition`` while the command runs; AssertionError with its output if the command ends first."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.ended(0.02) and not condition():
                done = self.wait()
                raise AssertionError(f"the command ended first, with status {done.status}\n{done.out}\n{done.err}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the condition was not met within {timeout:.0f} s\n{self.out}\n{self.err}")

    def wait(self, timeout: float = TIMEOUT) -> Done:
        """Wait for its end; after ``timeout`` seconds, kill it and raise AssertionError."""
        hangs = not self.ended(timeout)
        if hangs:
            self.signal(signal.SIGKILL, group=True)
        _, status = os.waitpid(self.pid, 0)
        done = Done(_shell_status(status), self.out, self.err)
        for fd in (self._pidfd, *self._streams):
            os.close(fd)
        self._streams = (-1, -1)
        if hangs:
            raise AssertionError(f"the command still ran after {timeout:.0f} s\n{done.out}\n{done.err}")
        return done


def start(*arguments: object, first: Callable[[], object] | None = None) -> Running:
    """Start ``ghostbpf ARGUMENTS``; its process calls ``first`` before anything else."""

    def prepare() -> None:
        if arguments[0] == "run":
            # The command must not inherit the affinity to the test's own CPU, which is in no enclave.
            os.sched_setaffinity(0, present_cpus())
        if first is not None:
            first()

    return fork(lambda: _main([str(argument) for argument in arguments]), first=prepare)


def ghostbpf(*arguments: object, first: Callable[[], object] | None = None) -> Done:
    """Run ``ghostbpf ARGUMENTS`` to its end."""
    return start(*arguments, first=first).wait()


def fork(body: Callable[[], object], *, first: Callable[[], object] | None = None) -> Running:
    """Run ``body`` in a fork, with an uncaught exception as Python reports it: traceback, exit status 1."""
    _warm_up()
    streams = os.memfd_create("stdout"), os.memfd_create("stderr")
    for stream in streams:  # without O_APPEND, concurrent writers share a position that the kernel does not lock
        fcntl.fcntl(stream, fcntl.F_SETFL, os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the fork has its own handlers, a signal would run those of the test process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setpgid(0, 0)
            _own_streams(*streams)
            _own_signals()
            if first is not None:
                first()
            status = _status_of(body)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)
    return Running(pid, streams)


def without(*capabilities: str) -> Callable[[], None]:
    """For ``first``: drop these capabilities of root, also for the programs that the command runs."""
    return lambda: _set_capabilities(~_bits(capabilities))


def with_only(*capabilities: str) -> Callable[[], None]:
    """For ``first``: drop all capabilities of root but these, also for the programs that the command runs."""
    return lambda: _set_capabilities(_bits(capabilities))


def without_capabilities() -> None:
    """For ``first``: drop every capability of root."""
    _set_capabilities(0)


def nobody() -> None:
    """For ``first``: become an ordinary user."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def read_sources_once(patch: pytest.MonkeyPatch, *policies: Policy) -> None:
    """Compile ``policies`` once, so that later loads read no file: files are slow in a guest."""
    objects = {(policy.source, *policy.defines.items()): policy.compile() for policy in policies}
    patch.setattr(compiler, "compile", lambda source, defines: objects[source, *defines.items()])


@contextlib.contextmanager
def running(*arguments: object, first: Callable[[], object] | None = None) -> Iterator[Running]:
    """Run ``ghostbpf ARGUMENTS`` during the block; kill it at the end if it still runs."""
    process = start(*arguments, first=first)
    try:
        yield process
    finally:
        if process._streams[0] >= 0:
            process.signal(signal.SIGKILL, group=True)
            process.wait()


@functools.cache
def _warm_up() -> None:
    """Import modules and types once, before the fork, that every fork needs."""
    for name in ("doctor", "enclave", "policies", "pushtosched", "run"):
        importlib.import_module(f"ghostbpf.tools.{name}")
    Btf.kernel().find("task_struct", Kind.STRUCT)
    core.ffi()


def _main(arguments: list[str]) -> None:
    sys.argv = ["ghostbpf", *arguments]
    cli.main()


def _status_of(body: Callable[[], object]) -> int:
    try:
        body()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _own_streams(out: int, err: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _own_signals() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _bits(capabilities: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in capabilities)


def _set_capabilities(keep: int) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for bit in range(last + 1):
        if not keep >> bit & 1:
            libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)
    libc.limit_capabilities(keep)


def _shell_status(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _text(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").read_text(errors="replace")
