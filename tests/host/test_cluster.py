# SPDX-License-Identifier: Apache-2.0
"""Cells of a sweep on a Dask cluster of two workers, which are processes of this machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ghostbpf.experiments.command import command
from ghostbpf.experiments.rocksdb.store import Results

distributed = pytest.importorskip("distributed")

from ghostbpf.experiments.rocksdb import cluster  # noqa: E402

LINE = [sys.executable, "-m", "ghostbpf.tools.cli", "experiment"]
SMALL = ("--entries", 3000, "--range-entries", 50, "--time-scale", 1, "--cpus", "0", "--discard-duration", "0")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    """A cluster of two workers with a thread each, which Dask restarts if they end."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local


def sweep(two_workers: Any, directory: Path, throughputs: str, seconds: float) -> list[str]:
    line = [*LINE, "shinjuku", "eevdf", *SMALL, "--rocksdb-db-path", directory / "db", "--throughputs", throughputs,
            "--experiment-duration", f"{round(seconds * 1000)}ms", "--output", directory / "r",
            "--executor", f"dask:{two_workers.scheduler_address}"]  # fmt: skip
    return [*map(str, line)]


def cells(directory: Path) -> list[dict[str, Any]]:
    return list(Results.read(directory / "r").cells.values())


def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def running_cells() -> list[int]:
    """The pids of cells that are measured now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ghostbpf.experiments.rocksdb.one_cell" in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.soak
def test_two_workers_of_one_machine_measure_in_turn(two_workers: Any, tmp_path: Path) -> None:
    done = subprocess.run(sweep(two_workers, tmp_path, "400-600/100", 0.2), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = sorted((cell["worker"] for cell in cells(tmp_path)), key=lambda one: one["began"])
    assert [cell["throughput"] for cell in cells(tmp_path)] == [400, 500, 600]
    assert len({one["pid"] for one in measured}) == 2, "both measure"
    assert all(a["ended"] <= b["began"] for a, b in itertools.pairwise(measured)), "never both at once"
    assert {one["kernel"] for one in measured} == {os.uname().release}
    assert "cell 3 of 3" in done.stderr


def test_cell_has_not_the_limits_that_dask_sets(two_workers: Any) -> None:
    with distributed.Client(two_workers, set_as_default=False) as client:
        for found in client.run(lambda: dict(os.environ)).values():
            assert found["OMP_NUM_THREADS"] == "1", "else Dask has changed, and nothing is to clear"
        for found in client.run(cluster.environment).values():
            assert not found.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
            assert found["PATH"] == os.environ["PATH"]


@pytest.mark.soak
def test_cell_of_a_worker_that_was_killed_is_measured_again_by_another(two_workers: Any, tmp_path: Path) -> None:
    with subprocess.Popen(sweep(two_workers, tmp_path, "400-500/100", 2), stderr=subprocess.PIPE, text=True) as child:
        until(running_cells)
        (cell,) = running_cells()
        worker = int(Path(f"/proc/{cell}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        until(lambda: cell not in running_cells())
        _, said = child.communicate()
    assert child.returncode == 0, said
    assert [cell["throughput"] for cell in cells(tmp_path)] == [400, 500]
    assert worker not in {cell["worker"]["pid"] for cell in cells(tmp_path)}


@pytest.mark.soak
def test_interrupted_sweep_ends_its_cells_and_is_resumed(two_workers: Any, tmp_path: Path) -> None:
    line = sweep(two_workers, tmp_path, "400-500/100", 4)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        until(running_cells)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
    assert child.returncode == 130, said
    assert "Traceback" not in said
    until(lambda: not running_cells())
    assert subprocess.run([*line, "--resume"], capture_output=True, check=False).returncode == 0
    assert len(cells(tmp_path)) == 2


@pytest.mark.soak
def test_cell_that_fails_is_told_with_its_worker_and_reason(two_workers: Any, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "other").write_text("")
    line = sweep(two_workers, tmp_path, "400", 0.2)
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["type"] == "failure"
    assert str(tmp_path / "db") in row["reason"]
    assert "tcp://" in row["reason"]


@pytest.mark.parametrize(
    ("executor", "message"),
    [("dask", "neither local nor dask:ADDRESS"), ("slurm:x", "neither local"), ("dask:", "neither local")],
)
def test_bad_executor_is_refused(executor: str, message: str) -> None:
    done = CliRunner().invoke(command, ["shinjuku", "eevdf", "--executor", executor])
    assert done.exit_code == 2
    assert message in done.output
