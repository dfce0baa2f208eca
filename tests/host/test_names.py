# SPDX-License-Identifier: Apache-2.0
"""Names that tasks set: text output has none of their control characters, and JSON has the exact name."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.auto_join import Outcome
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.tools import auto_join, cli
from ghostbpf.tools.output import printable, printable_lines, show
from hypothesis import given
from hypothesis import strategies as st
from tracing import Task, objects, run_trace

#: ESC, a line feed, the separator of frames in a flame graph, DEL, and a C1 control character in UTF-8.
NASTY = "a\x1b[2Jb\n;c\x7f\x9b"
SHOWN = r"a\x1b[2Jb\n;c\x7f\x9b"
FOLDED = SHOWN.replace(";", r"\x3b")


#: A task of that name that sleeps, spins, wakes another task, and moves.
WORK = f"""
import os, time
from ghostbpf.loaders import libc
libc.set_name({NASTY.encode()!r})
cpus = sorted(os.sched_getaffinity(0))
inlet, outlet = os.pipe()
if os.fork() == 0:
    for _ in range(10):
        os.read(inlet, 1)
    os._exit(0)
for turn in range(10):
    os.write(outlet, b"!")
    time.sleep(0.002)
    os.sched_setaffinity(0, {{cpus[turn % len(cpus)]}})
os.wait()
"""
COMMAND = ("--", sys.executable, "-c", WORK)


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) == "Cc"} - {"\n"}


@given(st.text())
def test_printable_is_one_line_and_changes_nothing_else(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable_lines(text).split("\n") == [printable(line, keep="\t") for line in text.split("\n")]
    if text.isprintable():
        assert shown == text


#: Each tool that prints names, with the lines that must contain the name.
TOOLS = [
    ("runqlat", "-L"),
    ("runqslower", "--min", "1"),
    ("cpudist", "-P"),
    ("offcputime",),
    ("offcputime", "--folded"),
    ("wakers", "-n", "1000"),
    ("migrations", "-n", "1000"),
    ("delays",),
]


@pytest.mark.parametrize("arguments", TOOLS, ids=" ".join)
def test_tracers_print_no_control_character_of_a_name(bcc: None, cpus: list[int], arguments: tuple[str, ...]) -> None:
    done = run_trace(*arguments, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert not controls(done.stdout + done.stderr)
    is_folded = "--folded" in arguments
    lines = [line for line in done.stdout.splitlines() if (FOLDED if is_folded else SHOWN) in line]
    assert lines
    if is_folded:
        assert all(line.startswith(f"{FOLDED};") and line.rpartition(" ")[2].isdecimal() for line in lines)


@pytest.mark.parametrize("tool", ["runqlat -L", "offcputime", "wakers"])
def test_json_has_the_very_name(bcc: None, cpus: list[int], tool: str) -> None:
    done = run_trace(*tool.split(), "--json", *COMMAND)
    lines = objects(done.stdout)
    names = {line.get("by", {}).get("comm") for line in lines} | {line.get("comm") for line in lines}
    assert NASTY in names | {line.get("wakee_comm") for line in lines}


def test_plot_of_a_name_with_dollars(bcc: None, task: Callable[..., Task], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = WORK.replace(repr(NASTY.encode()), repr(b"$\\x$"))
    done = run_trace("runqlat", "-L", "--plot", tmp_path / "a.svg", "--", sys.executable, "-c", name)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.svg").exists()


def test_process_of_any_name_can_be_traced(bcc: None, task: Callable[..., Task]) -> None:
    worker = task(lambda: Path("/proc/self/comm").write_bytes(b"\xff\x1c\xc2\x85:"))
    worker.run()
    done = run_trace("runqlat", "-p", worker.pid, "-d", 0.1)
    assert done.returncode == 0, done.stderr
    done = run_trace("delays", worker.pid, "-d", 0.1)
    assert done.returncode == 0, done.stderr


def test_tables_errors_and_reports_of_tasks_are_printed_safely(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"comm": NASTY}], as_json=False)
    cli.report(GhostError(f"no {NASTY}", hint=NASTY))
    enclave: Any = SimpleNamespace(id=1, cpus=CpuSet(os.sched_getaffinity(1)))
    auto_join.report(enclave, [Outcome(1, 1, NASTY, "comm", None), Outcome(1, 1, NASTY, "comm", "no")])
    printed = "".join(capsys.readouterr())
    assert not controls(printed)
    assert printed.count(r"\x1b[2J") == 5
    show([{"comm": NASTY}], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"comm": NASTY}


def test_wrong_command_line_is_shown_safely() -> None:
    done = run_trace("runqlat", f"--{NASTY}")
    assert done.returncode == 2
    assert not controls(done.stderr)
    assert r"a\x1b[2Jb" in done.stderr
