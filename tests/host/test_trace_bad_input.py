# SPDX-License-Identifier: Apache-2.0
"""Wrong command lines, and the help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from ghostbpf.tools import cli
from ghostbpf.tools.trace.command import TOOLS, command
from ghostbpf.tools.trace.tool import Seconds
from tracing import ghostbpf_trace

NO_PID = 4_194_303
FILTERED = [name for name in TOOLS if name not in ("delays", "dsqlat")]

#: For every tool with filters: the wrong arguments, the exit status and the message.
BAD_FILTERS = [
    (("-p", NO_PID), 1, f"there is no process {NO_PID}"),
    (("-t", NO_PID), 1, f"there is no thread {NO_PID}"),
    (("-c", "sixteen_letters_"), 1, 'no task is called "sixteen_letters_"'),
    (("-c", ""), 1, "at least one character"),
    (("--cgroup", "/nonexistent"), 1, "there is no cgroup /nonexistent"),
    (("--cgroup", "/tmp"), 1, "there is no cgroup /tmp"),
    (("-C", 4096), 1, "there is no CPU 4096"),
    (("-p", "x"), 2, "'x' is not a valid integer"),
    (("-p", 0), 2, "0 is not in the range"),
    (("-p", -1), 2, "-1 is not in the range"),
    (("-C", -1), 2, "-1 is not in the range"),
    (("--enclave", 64), 2, "64 is not in the range"),
    (("--enclave", "x"), 2, "'x' is not a valid integer"),
]

#: For every tool: durations and intervals.
BAD_PACES = [
    (("--", ), "no command after --"),
    (("-d", 0), "0.0 is not in the range"),
    (("-d", "soon"), "'soon' is not a number of seconds"),
    (("-d", "5x"), "'5x' is not a number of seconds"),
    (("-d", "nan"), "'nan' is not a number of seconds"),
    (("-d", "inf"), "'inf' is not a number of seconds"),
    (("--nonsense",), "No such option"),
]  # fmt: skip

BAD_INTERVALS = [
    ((0,), "0.0 is not in the range"),
    ((-1,), "No such option"),
    (("x",), "'x' is not a number of seconds; write -- before a command"),
    (("nan",), "'nan' is not a number of seconds"),
    ((1, 0), "0 is not in the range"),
    ((1, "x"), "'x' is not a valid integer"),
    ((1, 1, 1), "unexpected extra argument"),
]

BAD_OPTIONS = [
    (("runqlat", "-P", "-L"), 2, "only one of -P, -L and --per-cpu"),
    (("cpudist", "-L", "--per-cpu"), 2, "only one of -P, -L and --per-cpu"),
    (("runqlen", "-F", 0), 2, "0 is not in the range"),
    (("runqlen", "-C", 4096), 1, "there is no CPU 4096"),
    (("runqlen", "-m"), 2, "No such option"),
    (("runqslower", "--min", 0), 2, "0 is not in the range"),
    (("runqslower", "-n", 17), 2, "17 is not in the range"),
    (("offcputime", "-U", "-K"), 2, "-U and -K exclude each other"),
    (("offcputime", "--state", "asleep"), 2, "'asleep' is not one of"),
    (("offcputime", "--stack-storage-size", 0), 2, "0 is not in the range"),
    (("offcputime", "-m", 10, "-M", 5), 2, "-m 10 is more than -M 5"),
    (("wakers", "-n", 0), 2, "0 is not in the range"),
    (("migrations", "-n", 0), 2, "0 is not in the range"),
    (("delays",), 2, "no processes selected"),
    (("delays", NO_PID), 1, f"there is no process {NO_PID}"),
    (("delays", 1, "-n", 0), 2, "0 is not in the range"),
    (("delays", "x"), 2, "'x' is not a valid integer"),
    (("delays", 1, "-p", 1), 2, "No such option"),
    (("delays", 1, "-C", 0), 2, "No such option"),
    (("delays", "-t", NO_PID), 1, f"there is no thread {NO_PID}"),
    (("nonsense",), 2, "No such command 'nonsense'"),
    (("runqlatt",), 2, "No such command 'runqlatt'. Did you mean 'runqlat'?"),
    (("-d", 1, "runqlat"), 2, "-d is an option of runqlat, and goes after it: ghostbpf trace runqlat -d"),
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(root: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """``run(ARGUMENTS)``: ``ghostbpf trace ARGUMENTS`` in this process; returns exit status, stdout and stderr."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ghostbpf", "trace", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return run_main


def check(done: tuple[int, str, str], status: int, message: str) -> None:
    assert done[:2] == (status, "")
    assert "rror: " in done[2]
    assert message in done[2]
    assert "Tracing" not in done[2]


@pytest.mark.parametrize(("arguments", "status", "message"), BAD_FILTERS, ids=str)
def test_filter_that_nothing_can_match_is_refused(
    run: Run, arguments: tuple[object, ...], status: int, message: str
) -> None:
    for tool in FILTERED:
        check(run(tool, *arguments), status, message)
    check(run("runqlat", "--json", *arguments), status, message)


def test_thread_is_not_taken_for_a_process(run: Run) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        check(run("runqlat", "-p", thread.native_id), 1, f"{thread.native_id} is a thread of process {os.getpid()}")
    finally:
        over.set()
        thread.join()


def test_enclave_that_is_not_there_is_refused(run: Run) -> None:
    for tool in FILTERED:
        check(run(tool, "--enclave", 63), 1, "there is no enclave 63")


@pytest.mark.parametrize(("arguments", "message"), BAD_PACES, ids=str)
def test_wrong_length_of_the_trace_is_refused(run: Run, arguments: tuple[object, ...], message: str) -> None:
    for tool in TOOLS:
        check(run(tool, *arguments), 2, message)


@pytest.mark.parametrize(("arguments", "message"), BAD_INTERVALS, ids=str)
def test_wrong_interval_is_refused(run: Run, arguments: tuple[object, ...], message: str) -> None:
    for tool in TOOLS:
        if tool != "delays":
            check(run(tool, *arguments), 2, message)


@pytest.mark.parametrize(("arguments", "status", "message"), BAD_OPTIONS, ids=str)
def test_wrong_option_of_a_tool_is_refused(run: Run, arguments: tuple[object, ...], status: int, message: str) -> None:
    check(run(*arguments), status, message)


@pytest.mark.parametrize(("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("5s", 5.0), ("500ms", 0.5), ("20us", 2e-5)])
def test_duration_is_in_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert Seconds()(text) == pytest.approx(seconds)


def test_command_is_not_run_where_the_filter_is_wrong(run: Run, tmp_path: Path) -> None:
    check(run("runqlat", "-C", 4096, "--", "touch", tmp_path / "ran"), 1, "there is no CPU 4096")
    assert not (tmp_path / "ran").exists()


def test_tracing_needs_root(root: None) -> None:
    done = subprocess.run(
        ghostbpf_trace("runqlat", "-d", "1"), capture_output=True, text=True, user=65534, cwd="/", check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot trace without CAP_BPF and CAP_PERFMON\n  try: run it with sudo\n"


@pytest.mark.parametrize("tool", [None, *TOOLS])
def test_help_shows_examples_within_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, tool: str | None) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(*([tool] if tool else []), "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    examples = out.partition("Examples:\n" if tool is None else 'trace":\n')[2].partition("\n\n")[0]
    assert len(examples.splitlines()) >= 1
    assert tool is None or all(line.split()[0] == tool for line in examples.splitlines())


@pytest.mark.parametrize("tool", TOOLS)
def test_examples_of_a_tool_are_valid_command_lines(tool: str) -> None:
    made = command.get_command(click.Context(command), tool)
    assert made is not None
    lines = [line.strip() for line in (made.epilog or "").splitlines()]
    examples = [re.split(r"  +| > ", line)[0].split() for line in lines if line.startswith(f"{tool} ")]
    assert examples
    for _, *arguments in examples:
        made.make_context(tool, arguments).close()
