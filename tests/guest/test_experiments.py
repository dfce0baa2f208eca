# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment`` under policies: RocksDB with hints, a small sweep, and a policy that is ejected in one."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guest_python
import pytest
from command import running, start
from ghostbpf.experiments.rocksdb.store import Results
from ghostbpf.schedulers import core
from kernel_log import KernelLog
from workload import present_cpus, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]

#: An agent in an emulated guest takes milliseconds for a decision: 10 requests/s.
SMALL = ("--entries", 3000, "--range-entries", 50, "--time-scale", 100, "--cpus", "0-3", "--generator", "sleep")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_requests_are_served_by_workers_whose_hints_the_agent_reads(tmp_path: Path) -> None:
    line = ("experiment", "rocksdb", *SMALL, "--rocksdb-db-path", tmp_path / "db", "--scheduler", "ghost",
            "--num-workers", 2, "--throughput", "1k", "--experiment-duration", "3s", "--discard-duration", "0",
            "--range-query-ratio", 0.2, "--range-duration", "200us", "--json")  # fmt: skip
    done = start(*line).wait(timeout=800)
    assert done.status == 0, done.err
    measured = json.loads(done.out)
    assert measured["options"]["wait_type"] == "table"
    rocksdb = measured["rocksdb"]
    assert rocksdb["missing"] == 0
    for kind, least_ns in (("get", 1_000_000), ("range", 20_000_000)):
        handled = rocksdb[kind]["worker_handle"]
        assert handled["count"] > 0
        assert handled["min"] >= least_ns


@pytest.fixture
def ejection(kernel_log: KernelLog) -> Iterator[None]:
    """Expect an ejection of the core; the pins that it leaves are removed at the end."""
    kernel_log.expect("ghostbpf")
    yield
    if core.ROOT.exists():
        core.clear_pins()


def _serves() -> bool:
    """Whether the program that serves requests runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(words[0].decode()).name.startswith("rocksdb-"):
            return True
    return False


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ejection")
def test_sweep_leaves_out_an_ejected_policy_and_measures_the_rest(tmp_path: Path) -> None:
    line = ("experiment", "shenango", "ghost", "--policy", "rr", "--policy", "biff", *SMALL,
            "--rocksdb-db-path", tmp_path / "db", "--throughputs", "1k", "--output", tmp_path / "r",
            "--experiment-duration", "2s", "--discard-duration", "0")  # fmt: skip
    with running(*line) as process:
        process.until(lambda: "cell 1 of 2: rr" in process.err and _serves(), timeout=400)
        Path("/proc/sysrq-trigger").write_text("S")
        done = process.wait(timeout=400)
    assert done.status == 9, done.err
    assert "error: rr was ejected at 1,000 requests/s, and is left out" in done.err
    results = Results.read(tmp_path / "r")
    assert results.failures["rr"]["kind"] == "ejected"
    assert [*results.cells] == [("biff", 1000)]
    cell = results.cells["biff", 1000]
    assert cell["rocksdb"]["all"]["worker_handle"]["count"] > 0
    assert all(used > 0 for used, _ in cell["antagonist"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a Dask scheduler that has two workers, all of them processes of this guest."""
    address = "tcp://127.0.0.1:8786"
    lines = [("scheduler", "--host", "127.0.0.1", "--port", "8786", "--no-dashboard")]
    lines += [("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")] * 2
    said = tmp_path / "dask"
    with said.open("a") as file, contextlib.ExitStack() as ends:
        for line in lines:
            # In reverse: a worker takes leave of its scheduler.
            ends.callback(_end, dask(*line, stdout=file, stderr=file))
        until(lambda: said.read_text().count("Starting established connection") >= 2, "two workers", seconds=300)
        yield address


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=120)
    finally:
        process.kill()


def dask(kind: str, *options: str, **streams: Any) -> subprocess.Popen[str]:
    return python("-m", f"distributed.cli.dask_{kind}", *options, **streams)


def python(*words: object, **streams: Any) -> subprocess.Popen[str]:
    """A Python with Dask. The test process is bound to CPU 0, and this is not."""
    line = ["taskset", "-c", str(present_cpus()), sys.executable, *map(str, words)]
    return subprocess.Popen(line, env=guest_python.environment(), text=True, **streams)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@guest_python.needed
def test_workers_of_a_cluster_measure_policies_one_at_a_time(tmp_path: Path, cluster: str) -> None:
    line = ("shenango", "ghost", "--policy", "rr", "--policy", "biff", *SMALL,
            "--rocksdb-db-path", tmp_path / "db", "--throughputs", "500-1k/500", "--output", tmp_path / "r",
            "--experiment-duration", "2s", "--discard-duration", "0", "--executor", f"dask:{cluster}")  # fmt: skip
    sweep = python("-m", "ghostbpf.tools.cli", "experiment", *line, stderr=subprocess.PIPE)
    _, said = sweep.communicate(timeout=1200)
    assert sweep.returncode == 0, said
    cells = Results.read(tmp_path / "r").cells
    assert {*cells} == {(policy, rate) for policy in ("rr", "biff") for rate in (500, 1000)}
    workers = sorted((cell["worker"] for cell in cells.values()), key=lambda one: one["began"])
    assert len({one["pid"] for one in workers}) == 2, "both measure"
    assert all(a["ended"] <= b["began"] for a, b in itertools.pairwise(workers)), "never both at once"
    for cell in cells.values():
        assert cell["rocksdb"]["all"]["worker_handle"]["count"] > 0
        assert all(used > 0 for used, _ in cell["antagonist"])
