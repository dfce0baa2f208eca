# SPDX-License-Identifier: Apache-2.0
"""The workloads memcached and cyclictest of ``ghostbpf bench``, with the real programs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.experiments.bench import programs, workloads
from ghostbpf.experiments.bench.workloads import Result
from ghostbpf.loaders.errors import GhostError

needs_memcached = pytest.mark.skipif(shutil.which("memcached") is None, reason="no memcached (apt install memcached)")
needs_cyclictest = pytest.mark.skipif(shutil.which("cyclictest") is None, reason="no cyclictest (apt install rt-tests)")


def load(directory: Path, **options: object) -> subprocess.Popen[str]:
    """memcached under a load with these options."""
    given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    line = [str(programs.memcached_load()), *given, str(shutil.which("memcached")), "socket"]
    return subprocess.Popen(line, cwd=directory, stdout=subprocess.PIPE, text=True)


#: The number of the system call in which a measuring thread sleeps.
_CLOCK_NANOSLEEP = {"x86_64": "230", "aarch64": "115"}.get(os.uname().machine, "?")


def until(condition: Any) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


@needs_memcached
def test_memcached_answers_what_its_rate_says_and_ends_with_its_load(tmp_path: Path) -> None:
    workload = workloads.parse("memcached:rate=500,c=3,t=2,r=0.5")
    with subprocess.Popen(workload.command(2), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
        until(lambda: children(child.pid))
        (server,) = children(child.pid)
        out, _ = child.communicate()
    assert child.returncode == 0
    assert not Path(f"/proc/{server}").exists()
    report = json.loads(out)
    assert report["sent"] == pytest.approx(250, abs=5 * 250**0.5)
    assert report["latency"]["count"] == report["sent"], "each request counts, answered or not"
    assert 0 < report["latency"]["p50"] <= report["latency"]["p99"] <= report["latency"]["max"]


@needs_memcached
def test_memcached_that_stalls_does_not_slow_the_arrivals(tmp_path: Path) -> None:
    """A loop that waited for replies would send nothing in the meantime: two requests would be slow."""
    with load(tmp_path, rate=1000, seconds=1, connections=2, threads=1) as child:
        until(
            lambda: len(list(Path(f"/proc/{child.pid}/task").iterdir())) == 2
        )  # values are stored, and sending begins
        (server,) = children(child.pid)
        time.sleep(0.7)
        os.kill(server, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(server, signal.SIGCONT)
        report = json.loads(child.communicate()[0])
    assert report["sent"] == pytest.approx(1000, abs=5 * 1000**0.5)
    assert report["dropped"] == 0
    assert report["latency"]["max"] > 350e6
    # 400 of 1,000 requests came in these 0.4 s, and waited up to 0.4 s.
    assert report["latency"]["p90"] > 200e6
    assert report["lateness"]["p90"] < report["latency"]["p90"] / 2


def test_rate_of_memcached_that_was_not_made_has_no_figures(tmp_path: Path) -> None:
    workload = workloads.parse("memcached")
    values = {"p50": 1000.0, "p90": 2000.0, "p99": 3000.0, "p99.9": 4000.0}
    report = {"latency": values, "lateness": {**values, "p50": 100.0}, "dropped": 0, "replies_per_s": 9.0}
    assert [one.value for one in workload.metrics(Result(json.dumps(report), 1, tmp_path))] == [1, 2, 3, 4, 9]
    for late in ({"dropped": 7}, {"lateness": {**values, "p50": 900.0}}):
        with pytest.raises(GhostError, match="could not be made"):
            workload.metrics(Result(json.dumps({**report, **late}), 1, tmp_path))


def test_load_refuses_a_server_that_is_none(tmp_path: Path) -> None:
    line = [programs.memcached_load(), "/bin/false", "socket"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "memcached has ended" in done.stderr


# ---- cyclictest ----


def test_latencies_of_all_threads_count_and_those_beyond_the_histogram_as_the_longest(tmp_path: Path) -> None:
    threads = {
        "0": {"histogram": {"10": 600, "30": 300}, "cycles": 900, "max": 30},
        "1": {"histogram": {"20": 98}, "cycles": 100, "max": 5_000_000},
    }
    (tmp_path / "latencies").write_text(json.dumps({"thread": threads}))
    found = {one.name: one.value for one in workloads.parse("cyclictest").metrics(Result("", 1, tmp_path))}
    assert found == {"wakeup p50": 10, "wakeup p90": 30, "wakeup p99": 30, "wakeup p99.9": 5_000_000}
    (tmp_path / "latencies").write_text("{}")
    with pytest.raises(GhostError, match="printed no figures: no root"):
        workloads.parse("cyclictest").metrics(Result("no root", 1, tmp_path))


@contextlib.contextmanager
def as_batch(words: list[str], directory: Path) -> Iterator[int]:
    """A command as SCHED_BATCH, which stands for SCHED_EXT on a kernel without it."""

    def first() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    with subprocess.Popen(words, cwd=directory, stdout=subprocess.DEVNULL, preexec_fn=first) as child:
        try:
            yield child.pid
        finally:
            child.kill()


@needs_cyclictest
@pytest.mark.parametrize("is_preloaded", [True, False])
def test_threads_of_cyclictest_keep_their_policy(tmp_path: Path, is_preloaded: bool) -> None:
    words = workloads.parse("cyclictest:t=2,l=100000").command(2)
    assert words[1].startswith("LD_PRELOAD=")
    with as_batch(words if is_preloaded else words[2:], tmp_path) as pid:
        tasks = Path(f"/proc/{pid}/task")
        until(lambda: len(list(tasks.iterdir())) == 3 and not is_starting(tasks))
        policies = [os.sched_getscheduler(int(path.name)) for path in sorted(tasks.iterdir())]
    other = os.SCHED_BATCH if is_preloaded else os.SCHED_OTHER
    assert policies[1:] == [other, other], "without the library, its threads leave their class"


def is_starting(tasks: Path) -> bool:
    """Whether a thread has yet to sleep in its loop, which it does after it has set its policy."""
    waits = [(path / "syscall").read_text().split()[0] for path in sorted(tasks.iterdir())[1:]]
    return waits != [_CLOCK_NANOSLEEP] * 2


@needs_cyclictest
def test_cyclictest_has_its_figures(tmp_path: Path) -> None:
    workload = workloads.parse("cyclictest:t=2,l=50")
    subprocess.run(workload.command(2), cwd=tmp_path, check=True, capture_output=True)
    values = [one.value for one in workload.metrics(Result("", 1, tmp_path))]
    assert values == sorted(values)
    assert values[0] > 0
