# SPDX-License-Identifier: Apache-2.0
"""A real terminal for tests of both tiers: tmux, in which a command runs, keys are typed and the screen is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

#: Seconds; longer than a screen takes in an emulated guest, so that a timeout means that it does not come.
DEADLINE = 100.0


class Terminal:
    """A terminal of ``width`` by ``height`` that runs ``command``, a line for the shell.

    The pane stays when the command has ended, with its last screen and its exit status.
    """

    def __init__(
        self,
        directory: Path,
        command: str,
        width: int = 80,
        height: int = 24,
        environment: dict[str, str] | None = None,
    ) -> None:
        if shutil.which("tmux") is None:
            pytest.fail("tmux is not installed\n  try: make setup")
        self._socket = directory / f"tmux-{os.urandom(4).hex()}"
        settings = {"LC_ALL": "C.UTF-8", **(environment or {})}
        # The shell around the command shows what mode the command left the terminal in.
        line = f"{command}; echo ended with $?; stty -a; exec sleep 1000"
        assignments = [f"{name}={value}" for name, value in settings.items()]
        self._tmux("new-session", "-d", f"-x{width}", f"-y{height}", "env", *assignments, "sh", "-c", line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    @property
    def screen(self) -> str:
        """The text of the screen."""
        return self._tmux("capture-pane", "-p")

    @property
    def styled(self) -> str:
        """The screen with its escape sequences for colours."""
        return self._tmux("capture-pane", "-p", "-e")

    def keys(self, *names: str) -> None:
        """Type keys, by tmux's names."""
        self._tmux("send-keys", *names)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the terminal."""
        self._tmux("resize-window", f"-x{width}", f"-y{height}")

    def until(self, condition: str | Callable[[str], Any]) -> str:
        """Wait until the screen has a text, or meets a condition; returns it. AssertionError with the last screen."""
        deadline = time.monotonic() + DEADLINE
        while True:
            screen = self.screen
            if condition in screen if isinstance(condition, str) else condition(screen):
                return screen
            assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {condition}\n{screen}"
            time.sleep(0.25)  # each look starts a process, which is slow in an emulated guest

    @property
    def pid(self) -> int:
        """The process that runs in the terminal's foreground."""
        shell = int(self._tmux("display-message", "-p", "#{pane_pid}"))
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0]) if children else shell

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-f", os.devnull, "-S", str(self._socket), *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        environment.pop("NO_COLOR", None)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE, env=environment)
        return done.stdout
