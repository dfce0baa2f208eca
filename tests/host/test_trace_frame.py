# SPDX-License-Identifier: Apache-2.0
"""Behaviour common to all tracers: when they print, how they end, and their output without events."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from ghostbpf.tools.trace.filters import By, Filters
from ghostbpf.tools.trace.loop import Output, Pace, run
from ghostbpf.tools.trace.runqlat import TOOL as RUNQLAT
from ghostbpf.tools.trace.tool import Request
from ghostbpf.tools.trace.tracer import Tracer
from tracing import Task, complaints, ghostbpf_trace, objects, run_trace, tracing

pytestmark = pytest.mark.usefixtures("bcc")


def stdout_of(*arguments: object) -> str:
    done = run_trace(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_report_is_printed_each_interval_so_many_times() -> None:
    *reports, end = objects(stdout_of("cpudist", "--json", "0.1", "3"))
    assert len(reports) == 3
    assert all(report["seconds"] > 0 for report in reports)
    assert end["seconds"] >= 0.3
    assert end["events"] == sum(report["count"] for report in reports)


def test_intervals_count_only_what_is_new(task: Callable[..., Task]) -> None:
    sleeper = task(lambda: time.sleep(0.01))
    with tracing("runqlat", "-t", sleeper.pid, "0.05") as traced:
        before = sleeper.figures()
        for _ in range(20):
            sleeper.run()
        kernel = sleeper.figures() - before
    assert len(list(traced)) > 1
    assert kernel.has(sum(report["count"] for report in traced))
    assert traced.end["events"] == sum(report["count"] for report in traced)


def test_without_an_interval_one_report_comes_when_the_time_is_over() -> None:
    *reports, end = objects(stdout_of("runqlat", "--json", "-d", "0.3"))
    assert len(reports) == 1
    assert reports[0]["seconds"] >= 0.3
    assert end["seconds"] >= 0.3


def test_duration_cuts_the_last_interval_short() -> None:
    *reports, _ = objects(stdout_of("cpudist", "--json", "-d", "0.5", "0.4"))
    # On a busy machine, the first report may be so late that it is the last.
    assert len(reports) <= 2
    assert sum(report["seconds"] for report in reports) >= 0.5
    assert len(reports) == 1 or reports[1]["seconds"] < reports[0]["seconds"]


def test_duration_ends_it_before_the_count_is_reached() -> None:
    *reports, _ = objects(stdout_of("cpudist", "--json", "-d", "0.25", "0.1", "1000"))
    assert len(reports) <= 3


def test_time_stands_over_each_report() -> None:
    out = stdout_of("cpudist", "-T", "0.1", "2")
    assert len(re.findall(r"^\d\d:\d\d:\d\d$", out, re.MULTILINE)) == 2
    assert re.match(r"\d\d:\d\d:\d\d\n     usecs  ", out)


def test_text_is_within_80_columns() -> None:
    out = stdout_of("runqlat", "-d", "0.2")
    assert out.startswith("     usecs               : count     distribution\n")
    assert out.endswith("in all)\n\n")
    assert max(map(len, out.splitlines())) < 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_prints_what_was_gathered_and_ends_cleanly(task: Callable[..., Task], number: int) -> None:
    sleeper = task(lambda: time.sleep(0.01))
    command = ghostbpf_trace("runqlat", "-t", sleeper.pid)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Tracing run queue latency... Hit Ctrl-C to end.\n"
        for _ in range(5):
            sleeper.run()
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 0
    assert out.count("distribution") == 1
    assert complaints(err) == []


def test_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        ghostbpf_trace("cpudist", "0.05"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        # Only the line that tells that tracing has begun.
        assert len(complaints(process.stderr.read())) == 1


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["/nonexistent"], 127),
        (["/etc/passwd"], 126),
    ],
    ids=["true", "exit 3", "SIGTERM", "SIGKILL", "not found", "not executable"],
)
def test_exit_status_is_the_commands(command: list[str], status: int) -> None:
    done = run_trace("runqlat", "--", *command)
    assert done.returncode == status
    assert "Tracing" not in done.stderr
    assert "Traceback" not in done.stderr


def test_command_is_traced_with_its_children_and_no_other_task(task: Callable[..., Task]) -> None:
    *reports, _ = objects(stdout_of("cpudist", "-P", "--json", "--", "sh", "-c", "sleep 0.01; sleep 0.01 & wait"))
    assert sorted(report["by"]["comm"] for report in reports) == ["sh", "sleep", "sleep"]
    assert len({report["by"]["pid"] for report in reports}) == 3


def test_command_is_traced_from_its_first_instruction_to_its_end() -> None:
    script = "cat /proc/$$/task/$$/schedstat; exec cat /proc/self/schedstat"
    done = run_trace("runqlat", "--json", "-L", "--", "sh", "-c", script)
    *schedstats, _ = (line for line in done.stdout.splitlines())
    runs = [int(line.split()[2]) for line in schedstats if not line.startswith("{")]
    *reports, _ = objects("\n".join(line for line in done.stdout.splitlines() if line.startswith("{")))
    # The shell, which became a cat: every run is counted but the first, in which it was forked and waited to start.
    # It ran at most twice more after the second cat, as it exited.
    seen = max(report["count"] for report in reports)
    assert runs[0] <= runs[1]
    assert seen >= 0.8 * (runs[1] - 2)


def test_exec_keeps_tracing_under_the_new_name() -> None:
    script = "sleep 0.01; sleep 0.01; exec sleep 0.01"
    *reports, _ = objects(stdout_of("cpudist", "-L", "--json", "--", "sh", "-c", script))
    assert {report["by"]["comm"] for report in reports} == {"sleep"}
    assert len(reports) == 3


def test_command_outlives_the_trace_and_still_gives_its_status() -> None:
    done = run_trace("runqlat", "-d", "0.1", "--", "sh", "-c", "sleep 0.4; echo over; exit 4")
    assert done.returncode == 4
    assert "over\n" in done.stdout


def test_ctrl_c_ends_the_command_and_prints_what_was_gathered() -> None:
    # A terminal also sends the signal to the command.
    command = ghostbpf_trace("cpudist", "--", "sh", "-c", "echo up; exec sleep 60")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "distribution" in out
    assert complaints(err) == []


def test_tracer_that_is_terminated_passes_it_on_to_the_command() -> None:
    command = ghostbpf_trace("cpudist", "--", "sh", "-c", 'trap "echo told; exit 9" TERM; echo up; sleep 60 & wait')
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        # Not up to the end of the file: the remaining sleep has it open, too.
        assert process.stdout.readline() == "told\n"
        assert process.wait() == 9
        process.kill()


def test_task_that_slept_is_not_reported(task: Callable[..., Task]) -> None:
    sleeper = task(lambda: None)
    done = run_trace("runqlat", "-d", "0.1", "-t", sleeper.pid)
    assert (done.returncode, done.stdout) == (0, "")
    *_, line = done.stderr.splitlines()
    assert line == f"nothing matched: thread {sleeper.pid} was neither woken nor preempted meanwhile"


def test_task_that_has_ended_is_not_reported(task: Callable[..., Task]) -> None:
    sleeper = task(lambda: None)
    with tracing("schedghostidle") as idle, tracing("runqlat", "-m", "-p", sleeper.pid, "-c", "other") as traced:
        sleeper.kill()
    assert f"nothing matched: process {sleeper.pid} has ended" in traced.stderr
    assert traced.end["events"] == 0
    assert "there are no enclaves" in idle.stderr


class TinyRunqlat(RUNQLAT):
    """runqlat with room for one bucket."""

    def make(self) -> Tracer:
        return Tracer(self.NAME, self.request.filters, by=By.THREAD, entries={"cells": 1})


def test_times_without_room_are_counted_as_dropped(task: Callable[..., Task]) -> None:
    def nap() -> None:
        for _ in range(50):
            time.sleep(0.001)

    sleeper = task(nap)
    with TinyRunqlat(Request(Filters(tid=sleeper.pid), By.THREAD)) as tool:
        before = sleeper.figures()
        sleeper.run()
        kernel = sleeper.figures() - before
        kept = sum(histogram.count for histogram in tool.tracer.histograms().values())
        drops = tool.tracer.drops()
    assert kept > 0
    assert drops > 0
    assert kernel.has(kept + drops)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_drops_are_printed(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    command = ("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.001; done; exit 6")
    tool = TinyRunqlat(Request(Filters(command=True), By.THREAD))
    assert run(tool, Pace(), Output(as_json=as_json), command) == 6
    out, err = capfd.readouterr()
    dropped = re.search(r"^(\d+) events were dropped: the figures are too low$", err, re.MULTILINE)
    assert dropped is not None
    assert not as_json or objects(out)[-1]["drops"] == int(dropped[1]) > 0
