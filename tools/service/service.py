# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf service FILE``: apply a file, keep it applied, and choose profiles, until a signal ends it.

This process only watches. Each change is a run of ``ghostbpf apply``, so a policy that hangs or crashes while it is
loaded does not end the service. Enclaves and agents belong to none of these processes: they outlive both, and a
service that starts again goes on with them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from ...loaders.errors import GhostError
from ...schedulers.auto_join import Outcome
from ..caveats import counted
from ..output import json_option, printable, printable_lines
from . import health
from .config import Config, read
from .health import Health, HealthCheck
from .joining import Joiners
from .notify import Notifier
from .profiles import CpuLoad, ProfileChooser, process_names
from .state import ServiceState, StateFile

_TICK_S = 1.0
#: How long after a failed change, or a repair, the next is tried: twice as long each time, in seconds.
_RETRY_S, _LONGEST_RETRY_S = 5.0, 300.0
#: An enclave that has been well for as long, in seconds, is repaired at once the next time.
_STABLE_S = 60.0
#: How long the load is measured before a profile is chosen for the first time, in seconds.
_FIRST_LOAD_S = 0.5
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_EXAMPLES = """\b
Examples:
  sudo ghostbpf service /etc/ghostbpf/ghostbpf.toml
  sudo systemctl enable --now ghostbpf     the same, at each boot
  sudo systemctl reload ghostbpf           read the file again
  systemctl status ghostbpf                which profile holds

\b
Exit status: 0 after Ctrl-C or SIGTERM, and the enclaves stay; 1 if FILE
cannot be applied at the start; 2 if FILE, or the command line, is wrong.
"""


class Log:
    """Prints what happens: lines for people on stderr, or JSON on stdout."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, event: str, text: str, hint: str | None = None) -> None:
        """Print one event."""
        if self._as_json:
            click.echo(json.dumps({"at": round(time.time(), 3), "event": event, "text": text, "hint": hint}))
        else:
            click.echo(printable_lines(text + (f"\n  try: {hint}" if hint else "")), err=True)


class ApplyRun:
    """A run of ``ghostbpf apply`` for ``profile`` of ``config``, whose file may be another by now.

    Its input and output are files: it never waits for this process.
    """

    def __init__(self, config: Config, profile: str | None, removed: list[int]) -> None:
        self.profile = profile
        arguments = ["apply", config.path, "--stdin", "--no-join", "--json", *(f"--remove={id}" for id in removed)]
        arguments += [] if profile is None else [f"--profile={profile}"]
        with contextlib.ExitStack() as files:
            text, self._out, self._err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            text.write(config.text.encode())
            text.seek(0)
            command = [sys.executable, "-P", "-m", "ghostbpf.tools.cli", *arguments]
            self._process = subprocess.Popen(command, stdin=text, stdout=self._out, stderr=self._err)
            self._files = files.pop_all()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End it, and wait until it has undone what it had begun."""
        self._process.terminate()
        self._process.wait()
        self.close()

    def changes(self) -> Iterator[str]:
        """Each change that it made, in words."""
        for line in self._read(self._out).splitlines():
            change = json.loads(line)
            before, after = (change[key] or "none" for key in ("before", "after"))
            yield f"enclave {change['enclave']}: {change['what']}: {before} -> {after}"

    def error(self) -> str:
        """What it printed for people: warnings, and why it failed."""
        return self._read(self._err).strip()

    def close(self) -> None:
        """Drop its output."""
        self._files.close()

    @staticmethod
    def _read(file: BinaryIO) -> str:
        file.seek(0)
        return file.read().decode(errors="replace")


class Service:
    """Keeps one file applied."""

    def __init__(self, file: str, state: StateFile, notifier: Notifier, log: Log) -> None:
        self._file, self._state, self._notifier, self._log = file, state, notifier, log
        self._tick_s = min(_TICK_S, (notifier.watchdog_s or math.inf) / 2)
        self._config = read(file)
        self._joiners = Joiners(self._report_join)
        self._load = CpuLoad()
        self._run: ApplyRun | None = None
        self._applied: str | None = None  # the profile that holds
        self._is_ready = False
        self._dropped: list[int] = []  # enclaves of the former file
        self._stopping = self._reload = self._must_apply = False
        self._failed: set[str | None] = set()  # profiles that could not be applied
        self._failure = self._refusal = ""  # why a profile could not be applied, and the file not be read again
        self._join_error = ""
        self._retry_at, self._delay, self._well_since = 0.0, _RETRY_S, 0.0
        self._follow(self._config)

    def _follow(self, config: Config) -> None:
        self._config = config
        self._chooser = ProfileChooser(config.profiles)
        self._check = HealthCheck(config.enclaves)
        self._profile: str | None = None  # the profile whose conditions hold
        self._chosen_at = 0.0

    def serve(self, wakeup: int) -> int:
        """Serve until a signal comes; ``wakeup`` is readable then. Returns the exit status."""
        select.select([wakeup], [], [], _FIRST_LOAD_S if self._config.profiles else 0)
        try:
            while True:
                self._read_signals(wakeup)
                if self._stopping:
                    return 0
                if (status := self._step(time.monotonic())) is not None:
                    return status
                select.select([wakeup], [], [], self._tick_s)
        finally:
            self._notifier.send("STOPPING=1")
            if self._run is not None:
                self._run.end()
            self._joiners.stop()

    def _read_signals(self, wakeup: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(wakeup, 4096):
                self._stopping |= number in _END_SIGNALS
                self._reload |= number == signal.SIGHUP
        self._reap()

    def _reap(self) -> None:
        """Reap agents: in a container, where this is process 1, those whose ``apply`` has ended are its children."""
        with contextlib.suppress(ChildProcessError):
            while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if self._run is not None and info.si_pid == self._run.pid:
                    return  # it reaps its own process
                os.waitpid(info.si_pid, 0)

    def _step(self, now: float) -> int | None:
        """Look at everything once; the exit status if the service cannot begin."""
        if self._reload:
            self._reload = False
            self._read_again()
        # A signal wakes the loop early, and load is measured over whole ticks.
        if now - self._chosen_at >= _FIRST_LOAD_S:
            names = process_names() if self._chooser.needs_names else frozenset()
            self._profile, self._chosen_at = self._chooser.choose(now, self._load.read(), names), now
        if self._run is not None and (status := self._run.poll()) is not None:
            self._finish(status, now)
            if not self._is_ready:
                return status
        state = self._check.look(now) if self._is_ready else Health()
        if self._run is None:
            self._begin(state, now)
        if self._is_ready:
            for id, tid in state.hanging.items():
                self._log("hangs", f"enclave {id}: its agent, task {tid}, hangs: it is killed")
                health.kill(tid)
            if not state.hanging:
                self._notifier.send("WATCHDOG=1")
            self._join()
        self._tell(state)
        return None

    def _join(self) -> None:
        """Have tasks join by rule; a rule that cannot be followed is reported once."""
        error = ""
        try:
            self._joiners.keep(self._config.enclaves)
        except GhostError as refusal:
            if (error := str(refusal)) != self._join_error:
                self._log("error", f"tasks do not join: {error}", refusal.hint)
        self._join_error = error

    def _read_again(self) -> None:
        self._notifier.reloading()
        try:
            config = read(self._file)
        except GhostError as error:
            self._log("error", f"{error}: the file read before stays in force", error.hint)
            self._refusal = str(error)
        else:
            self._log("reload", f"{self._file} is read again")
            self._dropped = [*{*self._dropped, *self._config.enclaves} - config.enclaves.keys()]
            self._follow(config)
            self._failed.clear()
            self._must_apply, self._failure, self._refusal, self._retry_at = True, "", "", 0.0
        self._notifier.send("READY=1")

    def _begin(self, state: Health, now: float) -> None:
        """Start a change if one is due: another profile, another file, or a repair."""
        profile = self._profile
        if not state.is_well or self._failed:
            self._well_since = now
        elif now - self._well_since >= _STABLE_S:
            self._delay, self._retry_at = _RETRY_S, 0.0
        is_other = self._must_apply or not self._is_ready or profile != self._applied
        is_first_try = is_other and profile not in self._failed
        if not is_first_try and not ((is_other or state.lost) and now >= self._retry_at):
            return
        if state.lost:
            self._log("repair", f"{state}: the file is applied again")
        if profile != self._applied:
            self._log("profile", "no profile holds" if profile is None else f'profile "{profile}" holds')
        self._retry_at, self._delay = now + self._delay, min(2 * self._delay, _LONGEST_RETRY_S)
        self._run = ApplyRun(self._config, profile, self._dropped)

    def _finish(self, status: int, now: float) -> None:
        """Take note of a change's end."""
        run, self._run = self._run, None
        assert run is not None
        error = run.error()
        if status:
            kept = "; what was applied before stays in force" if self._is_ready else ""
            self._log("error", f"{self._file} cannot be applied{kept}\n{error}")
            self._failed.add(run.profile)
            self._failure = error.partition("\n")[0].removeprefix("error: ")
        else:
            for change in run.changes():
                self._log("change", change)
            self._failed.clear()
            self._must_apply, self._failure, self._dropped = False, "", []
            self._applied, self._well_since = run.profile, now
            if not self._is_ready:
                self._is_ready = True
                self._notifier.send("READY=1")
                self._log("ready", f"{self._file} is applied")
        run.close()

    def _tell(self, state: Health) -> None:
        profile = "" if self._applied is None else f' under profile "{self._applied}"'
        words = counted(len(self._config.enclaves), "enclave") + profile if self._is_ready else "applying the file"
        words += "" if state.is_well else f"; {state}"
        words += "".join(f"; not applied: {why}" for why in (self._failure, self._refusal) if why)
        self._notifier.status(words)
        self._state.write(ServiceState(os.getpid(), str(Path(self._file).absolute()), self._applied, words))

    def _report_join(self, id: int, outcome: Outcome | GhostError) -> None:
        if isinstance(outcome, GhostError):
            self._log("error", f"enclave {id}: tasks do not join: {outcome}", outcome.hint)
        elif outcome.error is None:
            self._log("join", printable(f"enclave {id}: task {outcome.tid} ({outcome.comm}) joined"))
        else:
            self._log("error", printable(f"cannot move task {outcome.tid} ({outcome.comm}): {outcome.error}"))


@click.command("service", epilog=_EXAMPLES)
@click.argument("file", type=click.Path())
@json_option
def command(file: str, as_json: bool) -> int:
    """Make the enclaves that the TOML FILE describes, and keep them, until Ctrl-C or SIGTERM.

    An enclave or an agent that is gone is made again, an agent that hangs is replaced, tasks join by rule, and the
    first profile whose conditions hold is applied. SIGHUP reads FILE again. What cannot be applied is reported, and
    what was there stays. At the end the enclaves and their agents stay. With systemd, see the unit ghostbpf.service.
    """
    with StateFile.hold() as state, _signals() as wakeup:
        return Service(file, state, Notifier(), Log(as_json)).serve(wakeup)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that has a byte, the number, for each signal that the service handles."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (*_END_SIGNALS, signal.SIGHUP, signal.SIGCHLD)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
