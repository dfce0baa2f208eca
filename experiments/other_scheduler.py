# SPDX-License-Identifier: Apache-2.0
"""A sched_ext scheduler that a command attaches: started, watched and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ..loaders import sched_ext
from ..loaders.errors import GhostError
from ..schedulers.launch import termination_signals
from ..schedulers.tasks import SCHED_EXT

#: How long a command may take to attach its scheduler, and to end after SIGINT.
_ATTACH_S, _END_S = 120.0, 60.0
_POLL_S = 0.05
#: How many lines of a command's output an error has.
_LINES = 10


class SchedulerLost(GhostError):
    """A scheduler is no longer in charge: what was measured last is no figure of it."""

    exit_status = 9


class OtherScheduler:
    """The scheduler that the kernel shows as attached; ``join`` puts a task under it, None where it has all tasks."""

    def __init__(self, status: sched_ext.Status, pid: int) -> None:
        self.ops, self.pid = status.ops or "?", pid
        self.join: Callable[[int], object] | None = None if status.switch_all else _enter_ext
        self._enable_seq = _enable_seq()

    def check(self) -> None:
        """Raise SchedulerLost unless it has been attached ever since."""
        status = sched_ext.status()
        if (status.state, status.ops, _enable_seq()) != ("enabled", self.ops, self._enable_seq):
            reason = sched_ext.exit_reason(self.ops) or "see dmesg"
            raise SchedulerLost(f"its scheduler {self.ops} was ejected: {reason}")


@contextlib.contextmanager
def attached(command: Sequence[str]) -> Iterator[OtherScheduler]:
    """The scheduler that ``command`` attaches, for the block; afterwards the command gets SIGINT.

    Raises GhostError if the command does not start or attaches nothing, and also after the block, if the scheduler
    stays attached without the command: that scheduler is then ejected, so that another can be attached.
    """
    if (running := sched_ext.status()).state != "disabled":
        raise GhostError(f"the scheduler {running.ops or '?'} is running", hint="stop it first")
    problem = ""
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The caller may have blocked SIGINT, which is to end the command.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
            )
        except OSError as error:
            raise GhostError(f"cannot run {command[0]}: {error.strerror}") from None
        try:
            try:
                yield _wait_attached(child, output)
            finally:
                problem = _stop(child)
        except GhostError as error:
            if problem:
                error.args = (f"{error}; {problem}",)
            raise
    if problem:
        raise GhostError(problem)


def _wait_attached(child: subprocess.Popen[bytes], output: IO[bytes]) -> OtherScheduler:
    deadline = time.monotonic() + _ATTACH_S
    while True:
        has_ended = child.poll() is not None  # read before the state: a command may attach and end
        status = sched_ext.status()
        if status.state == "enabled" and status.ops:
            return OtherScheduler(status, child.pid)
        if has_ended and status.state == "disabled":
            raise GhostError(f"it ended with status {child.returncode} and attached no scheduler: {_end_of(output)}")
        if time.monotonic() > deadline:
            raise GhostError(f"it attached no scheduler within {_ATTACH_S:.0f} s: {_end_of(output)}")
        if signal.sigpending() & termination_signals():
            raise GhostError("interrupted while it starts")
        time.sleep(_POLL_S)


def _stop(child: subprocess.Popen[bytes]) -> str:
    """Interrupt the command and all of its process group, as Ctrl-C does; returns what is wrong afterwards, or ""."""
    problems = []
    _signal(child, signal.SIGINT)
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        problems.append(f"it did not end within {_END_S:.0f} s of SIGINT")
        _signal(child, signal.SIGKILL)
        child.wait()
    if not sched_ext.wait_disabled():
        problems.append(f"it left the scheduler {sched_ext.status().ops or '?'} behind")
        _signal(child, signal.SIGKILL)
        Path("/proc/sysrq-trigger").write_text("S", encoding="utf-8")
        if not sched_ext.wait_disabled():
            problems.append("which SysRq-S does not remove")
    return ", ".join(problems)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _end_of(output: IO[bytes]) -> str:
    """The last lines of a command's output."""
    size = os.fstat(output.fileno()).st_size
    lines = os.pread(output.fileno(), 4096, max(size - 4096, 0)).decode(errors="replace").strip().splitlines()
    return "\n  ".join(line.strip() for line in lines[-_LINES:]) or "it printed nothing"


def _enable_seq() -> str:
    return (sched_ext.SYSFS / "enable_seq").read_text(encoding="utf-8")


def _enter_ext(tid: int) -> None:
    os.sched_setscheduler(tid, SCHED_EXT, os.sched_param(0))
