# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf record``: what the scheduler does, as a trace for Perfetto, ``explain`` and ``compare``."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

import click

from ...loaders import capabilities, pid_namespace
from ...schedulers.launch import Command, signals_blocked, termination_signals
from ..output import human_bytes, printable
from ..trace.tool import Seconds
from ..trace.tool_command import CommandAfterDashes
from .events import Ejected
from .recording import CannotWrite, FlightRecorder, Losses, Stream
from .source import Source

_POLL_SECONDS = 0.1
_PROGRESS_SECONDS = 1.0

_EPILOG = """\b
Examples:
  sudo ghostbpf record -o trace -- make -j8       a command, from start to end
  sudo ghostbpf record -o trace -d 5              5 s of the whole machine
  sudo ghostbpf record -o trace --last 10s        a flight recorder: then
  sudo pkill -USR1 -f 'ghostbpf record'           write what it has now
  ghostbpf explain trace --task 4711              why did task 4711 wait?

\b
Open the file at https://ui.perfetto.dev: nothing is sent anywhere.

\b
Exit status: CMD's own (128+N if signal N ended it, 126 or 127 if it
cannot be run); without CMD, 0 when it is done or Ctrl-C ends it. 1 if
recording failed or the file cannot be written, 2 if the command line is
wrong.
"""


@click.command(cls=CommandAfterDashes, epilog=_EPILOG)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Write the recording to FILE, in place of what is there.",
)
@click.option("-d", "--duration", type=Seconds(), metavar="SECONDS", help="End the recording after SECONDS.")
@click.option(
    "--last",
    type=Seconds(),
    metavar="SECONDS",
    help="Keep the last SECONDS in memory only, as 10s. They are written when the core is ejected, on SIGUSR1, and at "
    "the end: first to FILE, then to FILE.2, FILE.3 and so on.",
)
@click.pass_context
def command(ctx: click.Context, output: Path, duration: float | None, last: float | None) -> int:
    """Record what the scheduler does, for Perfetto, explain and compare.

    The recording has each switch and wakeup of the whole machine, the queue on which each task waits, the messages of
    the core to agents and their transactions, and the policies of enclaves. SECONDS are a number, or one with a unit:
    500ms.
    """
    capabilities.need("record", "CAP_BPF", "CAP_PERFMON")
    cmd: tuple[str, ...] = ctx.obj
    with signals_blocked({signal.SIGCHLD, signal.SIGUSR1, *termination_signals()}):
        child = Command(cmd) if cmd else None
        try:
            return _Session(output, duration, last, child).run()
        except BaseException:
            if child is not None:
                child.abandon()
            raise


class _Session:
    def __init__(self, path: Path, duration: float | None, last: float | None, child: Command | None) -> None:
        self._path, self._duration, self._child = path, duration, child
        self._stream = Stream(path) if last is None else None
        self._flight = FlightRecorder(path, last) if last is not None else None
        self._losses = Losses()
        self._shown_at = 0.0
        self._started = 0.0

    def run(self) -> int:
        """Record until the end, and wait for the command; returns the exit status."""
        try:
            with self._stream or contextlib.nullcontext():
                with Source() as source:
                    self._begin(source)
                    ended = False
                    while not ended:
                        ended = self._wait()
                        self._take(source, last=ended)
                self._finish()
        except CannotWrite:
            if self._child is not None:
                self._child.status()
            raise
        return self._child.status() if self._child is not None else 0

    def _begin(self, source: Source) -> None:
        for note in (*(f"warning: {reason}" for reason in source.missing), pid_namespace.note()):
            if note:
                click.echo(note, err=True)
        if self._child is None:
            click.echo("Recording... Hit Ctrl-C to end.", err=True)
        else:
            self._child.start(lambda pid: None)
        self._started = time.monotonic()

    def _wait(self) -> bool:
        """Wait for the next look; returns whether the recording ends."""
        if self._duration is not None and time.monotonic() >= self._started + self._duration:
            return True
        if self._child is not None:
            return self._child.wait(_POLL_SECONDS) is not None
        return signal.sigtimedwait(termination_signals(), _POLL_SECONDS) is not None

    def _take(self, source: Source, last: bool) -> None:
        events = self._losses.noted(source.drops(), source.look())
        if self._stream is not None:
            self._stream.take([] if self._stream.is_full and not last else source.read(), events)
            self._stream.work(_POLL_SECONDS)
        if self._flight is not None:
            self._flight.take(source.read(), events)
            ejected = any(isinstance(event, Ejected) for event in events)
            if signal.sigtimedwait({signal.SIGUSR1}, 0) is not None or ejected:
                self._dump("the core was ejected" if ejected else "SIGUSR1")
        self._progress()

    def _dump(self, why: str) -> None:
        assert self._flight is not None
        path, size = self._flight.dump()
        self._say(f"{why}: wrote {path} ({human_bytes(size)})", end=True)

    def _finish(self) -> None:
        if self._stream is not None:
            while self._stream.work(_POLL_SECONDS):
                self._progress("writing, ")
            count, size = self._stream.count, self._stream.size
            dropped = f"{self._losses.count:,} dropped"
            self._say(f"{count:,} events, {dropped}: {self._path} ({human_bytes(size)})", end=True)
            if self._stream.hidden:
                click.echo(f"the kernel did not report {self._stream.hidden} switches", err=True)
        else:
            self._dump("at the end")
        if self._losses.count:
            click.echo(f"{self._losses.count} events were dropped: waits next to them may be wrong", err=True)

    def _progress(self, doing: str = "") -> None:
        if not sys.stderr.isatty() or time.monotonic() < self._shown_at + _PROGRESS_SECONDS:
            return
        self._shown_at = time.monotonic()
        sink = self._stream or self._flight
        assert sink is not None
        seconds = time.monotonic() - self._started
        self._say(
            f"{doing}{seconds:.0f} s, {sink.count:,} events, {self._losses.count:,} dropped, {human_bytes(sink.size)}"
        )

    def _say(self, text: str, end: bool = False) -> None:
        """Print a line that replaces the last progress; ``end``: it stays."""
        if sys.stderr.isatty():
            text = f"\r\x1b[K{printable(text)}"
        click.echo(text, err=True, nl=end)
