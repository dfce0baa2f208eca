# SPDX-License-Identifier: Apache-2.0
"""Starting a command that is inside an enclave from its first instruction on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence

#: A shell's exit status for a command that it cannot find, and for one that it may not execute.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def termination_signals() -> set[signal.Signals]:
    """The signals that ask this process to end, except those that it ignores (nohup, a shell's &)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


@contextlib.contextmanager
def signals_blocked(numbers: set[signal.Signals]) -> Iterator[None]:
    """Block signals for the block, for sigtimedwait(); afterwards, drop termination signals that came too late."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        while signal.sigtimedwait(termination_signals(), 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Command:
    """A child process that waits for start() before it executes the command."""

    def __init__(self, arguments: Sequence[str]) -> None:
        gate, self._gate = os.pipe()
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _wait_and_exec(gate, arguments)
        os.close(gate)

    def start(self, prepare: Callable[[int], object]) -> None:
        """Call ``prepare`` with its pid, then let it run; if ``prepare`` raises, it never runs."""
        try:
            prepare(self.pid)
            os.write(self._gate, b"!")
        except BaseException:
            self.abandon()
            raise
        finally:
            os.close(self._gate)

    def wait(self, timeout: float) -> int | None:
        """Its exit status as a shell has it (128 + n for signal n), or None after ``timeout`` seconds.

        SIGCHLD and termination_signals() must be blocked. The wait ends early when the child ends. Termination signals
        are passed on to it, except SIGINT, which the terminal sends to both.
        """
        if (status := self._poll()) is None:
            info = signal.sigtimedwait({signal.SIGCHLD, *termination_signals()}, timeout)
            if info is not None and info.si_signo not in (signal.SIGCHLD, signal.SIGINT):
                os.kill(self.pid, info.si_signo)
            status = self._poll()
        return status

    def status(self) -> int:
        """Wait for its end without a limit, and return its exit status."""
        while (status := self.wait(60)) is None:
            pass
        return status

    def abandon(self) -> None:
        """Kill it, whether it was started or not."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._status = 128 + signal.SIGKILL
            os.waitpid(self.pid, 0)

    def _poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self._status


def _wait_and_exec(gate: int, arguments: Sequence[str]) -> None:
    status = _NOT_FOUND
    try:
        if not os.read(gate, 1):
            os._exit(status)
        # Undo what Python has changed for itself.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *(termination_signals() & {signal.SIGINT})):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(arguments[0], list(arguments))
    except OSError as error:
        os.write(2, f"error: cannot run {arguments[0]}: {error.strerror}\n".encode())
        status = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    finally:
        os._exit(status)
