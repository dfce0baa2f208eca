# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf record`` of real tasks: files are whole however it ends, and a flight recorder keeps the last seconds."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.tools.record import waits
from ghostbpf.tools.record.events import Queued, Switch
from ghostbpf.tools.record.reader import read
from ghostbpf.tools.record.timeline import Timeline
from tracing import DEADLINE, Task, run_together, spin, wait_until


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ghostbpf.tools.cli", "record", *map(str, arguments)]


@contextlib.contextmanager
def recorder(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A recorder that records; it is killed at the end if it has not ended."""
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "Recording... Hit Ctrl-C to end.\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_two_tasks_on_one_cpu_are_each_others_culprits(task: Callable[..., Task], tmp_path: Path) -> None:
    tasks = [task(lambda: spin(0.1), cpu=1) for _ in range(2)]
    before = [one.figures() for one in tasks]
    with recorder("-o", tmp_path / "trace") as process:
        run_together(tasks)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "0 dropped: " in err
    timeline = Timeline(read(tmp_path / "trace").events)
    for one, other, earlier in ((tasks[0], tasks[1], before[0]), (tasks[1], tasks[0], before[1])):
        kernel = one.figures() - earlier
        recorded = timeline.tasks[one.pid]
        assert {run.cpu for run in recorded.runs} == {1}
        assert sum(run.ns for run in recorded.runs) / 1e9 == pytest.approx(kernel.ran, rel=0.1, abs=0.01 + kernel.slack)
        assert sum(wait.ns for wait in recorded.waits) / 1e9 == pytest.approx(
            kernel.waited, rel=0.2, abs=0.02 + kernel.slack
        )
        longest = max(waits.explain(timeline, recorded), key=lambda explained: explained.wait.ns)
        assert longest.allowed == 0b10
        everyone = {
            culprit.task.tid for explained in waits.explain(timeline, recorded) for culprit in explained.culprits
        }
        assert other.pid in everyone
        assert longest.decided_by == waits.KERNEL


def test_killed_recorder_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with recorder("-o", path) as process:
        wait_until(lambda: path.stat().st_size > 20_000, "it writes while it records")
        process.kill()
    assert any(isinstance(event, Switch) for event in read(path).events)


def test_flight_recorder_keeps_the_last_seconds_and_dumps_on_a_signal(tmp_path: Path) -> None:
    first, second = tmp_path / "trace", tmp_path / "trace.2"
    with recorder("-o", first, "--last", "500ms", "-d", "1.5") as process:
        process.send_signal(signal.SIGUSR1)
        wait_until(first.exists, "a dump on SIGUSR1")
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert f"SIGUSR1: wrote {first}" in err
    assert f"at the end: wrote {second}" in err
    timelines = [Timeline(read(path).events) for path in (first, second)]
    assert all(0 < timeline.ns <= 500_000_000 for timeline in timelines)
    # The ring was overwritten: the second file has nothing of the first.
    assert timelines[0].until < timelines[1].since


def test_full_disk_is_named_and_the_file_is_what_was_written(tmp_path: Path) -> None:
    path, limit = tmp_path / "trace", 20_000
    done = subprocess.run(
        command("-o", path, "--", "sleep", "0.5"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert f"error: cannot write {path}: File too large\n  try: what was recorded" in done.stderr
    found = read(path)
    assert not found.cut_off
    assert any(isinstance(event, Queued) for event in found.events)


def test_status_of_the_command_is_kept_and_a_bad_file_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        command("-o", tmp_path / "trace", "--", "sh", "-c", "exit 7"), capture_output=True, check=False
    )
    assert done.returncode == 7
    missing = tmp_path / "none" / "trace"
    done = subprocess.run(command("-o", missing, "-d", "1"), capture_output=True, check=False)
    assert done.returncode == 1
    assert f"error: cannot write {missing}: No such file or directory" in done.stderr.decode()
