# SPDX-License-Identifier: Apache-2.0
"""One run of a command for a call: bounded in time and output, and ended with the call.

A command ends as by Ctrl-C, so that it cleans up and prints what it has; if it does not, it is killed. It is the leader
of a session, so that signals for the server's terminal do not reach it, and gets SIGTERM if the server is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio

from ..output import human_bytes

MOST_OUTPUT = 256 << 10
MOST_MESSAGES = 16 << 10
#: How long a command may take to end after SIGINT, before SIGKILL.
_GRACE_S = 10.0
_REPORT_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and how it ended; ``notes`` say what is missing."""

    status: int
    out: str
    err: str
    notes: tuple[str, ...]


async def run(
    words: Sequence[str], directory: Path, timeout: float, report: Callable[[float, str], Awaitable[None]]
) -> Outcome:
    """Run ``ghostbpf WORDS`` in ``directory`` for at most ``timeout`` seconds.

    Each second, ``report`` gets the seconds since its start, and the last line of its messages.
    """
    child = _Child([sys.executable, "-m", "ghostbpf.tools.cli", *words], directory)
    notes = []
    try:
        with anyio.move_on_after(timeout) as limit:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_report, child, report)
                await child.ended.wait()
                tasks.cancel_scope.cancel()
        if limit.cancelled_caught:
            notes.append(f"it ran for {timeout:g} s, and was ended: the result may be incomplete\n  try: a shorter run")
    finally:
        with anyio.CancelScope(shield=True):
            await child.end()
    if child.out.left_out:
        size = human_bytes(len(child.out.kept) + child.out.left_out)
        notes.append(f"the first {human_bytes(len(child.out.kept))} of {size} are shown\n  try: a filter")
    return Outcome(child.status, child.out.text(), child.err.text(), tuple(notes))


async def _report(child: _Child, report: Callable[[float, str], Awaitable[None]]) -> None:
    started = anyio.current_time()
    while True:
        await anyio.sleep(_REPORT_S)
        lines = child.err.text().splitlines()
        await report(anyio.current_time() - started, lines[-1] if lines else "")


class _Kept:
    """The first bytes of a stream, to the end of a line; with ``last``, its last bytes, from the start of a line."""

    def __init__(self, most: int, *, last: bool = False) -> None:
        self.kept, self.left_out = bytearray(), 0
        self._most, self._last = most, last

    def add(self, data: bytes) -> None:
        if self.left_out and not self._last:
            self.left_out += len(data)
            return
        self.kept += data
        if len(self.kept) <= self._most:
            return
        if self._last:
            cut = self.kept.find(b"\n", len(self.kept) - self._most) + 1 or len(self.kept) - self._most
            del self.kept[:cut]
            self.left_out += cut
        else:
            cut = self.kept.rfind(b"\n", 0, self._most) + 1 or self._most
            self.left_out = len(self.kept) - cut
            del self.kept[cut:]

    def text(self) -> str:
        return self.kept.decode(errors="replace")


class _Child:
    """A process whose output is read as it comes; ``ended`` is set at its end, also if others hold its streams.

    An agent that stays has its streams for a moment longer.
    """

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self.out, self.err = _Kept(MOST_OUTPUT), _Kept(MOST_MESSAGES, last=True)
        self.ended = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *argv],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self.ended.set)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._streams: list[tuple[IO[bytes], _Kept]] = [
            (self._process.stdout, self.out),
            (self._process.stderr, self.err),
        ]
        for stream, kept in self._streams:
            os.set_blocking(stream.fileno(), False)
            self._loop.add_reader(stream, self._read, stream, kept)

    @property
    def status(self) -> int:
        """The exit status as in a shell."""
        status = self._process.wait()
        return 128 - status if status < 0 else status

    async def end(self) -> None:
        """End it if it runs, and read what it has printed."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if not self.ended.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with anyio.move_on_after(_GRACE_S):
                    await self.ended.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for stream, kept in self._streams:
            while self._read(stream, kept):
                pass
            self._loop.remove_reader(stream)
            stream.close()

    def _read(self, stream: IO[bytes], kept: _Kept) -> bool:
        """Keep what the stream has; returns whether there may be more."""
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(stream)
        kept.add(data)
        return bool(data)
