# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf top`` in a real terminal, where no core is attached."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from terminal import Terminal

COMMAND = f"{shlex.quote(sys.executable)} -m ghostbpf.tools.cli top"
no_sched_ext = pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="another core may be attached")
pytestmark = [no_sched_ext, pytest.mark.usefixtures("root")]


def test_screen_without_a_core_says_so_and_keys_work(tmp_path: Path) -> None:
    with Terminal(tmp_path, COMMAND) as terminal:
        terminal.until("no core is attached")
        terminal.keys("d")
        terminal.until("there is no enclave")
        terminal.keys("?")
        screen = terminal.until("destroy the enclave, after a question")
        assert all(line.startswith("│") and line.endswith("│") for line in screen.splitlines() if "tasks" in line)
        terminal.keys("Escape")
        terminal.until(lambda screen: "after a question" not in screen)
        terminal.keys("?")
        terminal.until("after a question")
        terminal.keys("C-c")  # also while a question is open
        terminal.until("ended with 0")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)], ids=lambda number: number.name
)
def test_signal_ends_it_and_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    with Terminal(tmp_path, COMMAND) as terminal:
        terminal.until("no core is attached")
        os.kill(terminal.pid, number)
        screen = terminal.until(lambda screen: "ended with 0" in screen and "iexten" in screen)
    assert "-icanon" not in screen
    assert "-echo " not in screen
    assert "no core is attached" not in screen, "the screen before has come back"


def test_terminal_without_utf8_gets_ascii(tmp_path: Path) -> None:
    with Terminal(tmp_path, COMMAND, environment={"PYTHONIOENCODING": "latin-1"}) as terminal:
        terminal.until("no core is attached")
        terminal.keys("?")
        assert terminal.until("after a question").isascii()


def test_screen_without_textual_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError('no textual', name='textual')\n")
    with Terminal(tmp_path, COMMAND, environment={"PYTHONPATH": str(tmp_path)}) as terminal:
        screen = terminal.until("ended with 1")
    assert "error: top needs the Python package textual" in screen
    assert "ghostbpf top --once does without" in " ".join(screen.split())


def test_without_a_terminal_once_is_the_remedy() -> None:
    done = subprocess.run([*shlex.split(COMMAND)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: top needs a terminal\n  try: ghostbpf top --once\n"
