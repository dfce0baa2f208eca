# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks of ``ghostbpf experiment``: the original's output, and what EEVDF can run without sched_ext."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ghostbpf.experiments.command import command
from ghostbpf.experiments.micro import scalability
from ghostbpf.experiments.micro.costs import Cost
from ghostbpf.experiments.micro.costs_command import table
from ghostbpf.experiments.micro.simple_command import balance_text, nice_text
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.topology import Topology

LINE = [sys.executable, "-m", "ghostbpf.tools.cli", "experiment"]


def experiment(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LINE, *map(str, arguments)], capture_output=True, text=True, check=False)


# ---- which CPUs ----


def two_nodes() -> Topology:
    """Two nodes of two cores, each with two threads: CPU n and n + 4 are siblings."""
    rows: list[Any] = [
        {"id": cpu, "core": cpu % 4, "smt_idx": cpu // 4, "siblings": f"{cpu % 4},{cpu % 4 + 4}", "l3_siblings": "",
         "numa_node": cpu % 4 // 2}
        for cpu in range(8)
    ]  # fmt: skip
    return Topology.from_rows(rows)


@pytest.mark.parametrize(
    ("pack_smt", "skip_cpu0", "order"),
    [
        (False, True, [4, 5, 2, 3, 6, 7]),
        (True, True, [4, 5, 2, 6, 3, 7]),
        (True, False, [0, 4, 5, 2, 6, 3, 7]),
    ],
)
def test_cpus_fill_a_node_before_the_next(pack_smt: bool, skip_cpu0: bool, order: list[int]) -> None:
    layout = scalability.layout(two_nodes(), 1, skip_cpu0=skip_cpu0, pack_smt=pack_smt)
    assert list(layout.order) == order
    assert layout.tasks(3) == CpuSet(order[:3])
    assert layout.enclave(2) == CpuSet({1, *order[:2]})


def test_policies_get_the_slices_of_the_original_and_decide_everything() -> None:
    values = {
        name: one.policy.values
        for name in ("sol", "edf", "shinjuku", "sol:fastpath=on,spin=no")
        if (one := scalability.candidate(name, 1)).policy is not None
    }
    assert {name: value["fastpath"] for name, value in values.items()} == {
        "sol": 0, "edf": 0, "shinjuku": 0, "sol:fastpath=on,spin=no": 1
    }  # fmt: skip
    assert values["shinjuku"]["slice_ns"] == 50_000
    assert {value["agent_cpu"] for value in values.values()} == {1}
    assert values["sol"]["spin"] == 1
    assert values["sol:fastpath=on,spin=no"]["spin"] == 0


# ---- the output of the originals ----

CSV = """\
testing sched none
global agent on cpu 1
testing up to 1 worker cpus
nr_loops total: 1000
nr_threads per cpu: 5
not skipping cpu 0

nr_task_cpus,scheds_per_sec,loops_per_thread
"""
NONE = ("global-scalability", "none", "--use-cpu0", "--max-cpus", 2)
two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU for the agent, and one for tasks")


@two_cpus
def test_global_scalability_prints_what_the_original_prints(tmp_path: Path) -> None:
    done = experiment(*NONE, "--total-loops", 1000, "--output", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(CSV)
    cpus, rate, loops = done.stdout.removeprefix(CSV).strip().split(",")
    assert (cpus, loops) == ("1", "200")
    assert len(rate.partition(".")[2]) == 6
    (row,) = map(json.loads, (tmp_path / "r" / "cells.jsonl").read_text().splitlines()[1:])
    assert row["scheds"] == 1000
    assert float(rate) == pytest.approx(row["scheds"] / row["ns"] * 1e9)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*LINE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@two_cpus
def test_run_that_was_killed_is_resumed_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    line = (*NONE, "--threads-per-cpu", "1,2,3,4", "--total-loops", 2000, "--output", tmp_path)
    with started(*line) as process:
        ends = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > 1):
            assert time.monotonic() < ends
            time.sleep(0.01)
        process.kill()
    before = path.read_bytes().rpartition(b"\n")[0]
    assert before.count(b"\n") < 4
    done = experiment(*line, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(before)
    measured = [row["threads_per_cpu"] for row in map(json.loads, done.stdout.splitlines())]
    assert measured == [1, 2, 3, 4]
    changed = [*map(str, line[:-3]), "3000", "--output", str(tmp_path), "--resume"]
    with pytest.raises(GhostError, match="another run: its options is"):
        command.main(changed, standalone_mode=False)
    command.main(["report", str(tmp_path)], standalone_mode=False)
    page = (tmp_path / "report.html").read_text()
    for shown in ("cost against CPUs", "cost against tasks", "ns per schedule", os.uname().release, "4 of 4", "<svg"):
        assert shown in page


def test_nice_values_are_told_as_in_the_original() -> None:
    assert nice_text([[100, 15], [100, 88761], [200, 1024]]) == (
        "nicest ghOSt thread:\n"
        "  first stage as nice=0: counter=100\n"
        "    estimated relative weight to nice(0)=1/2\n"
        "  second_stage as nice=19: counter=15\n"
        "    estimated relative weight to nice(0)=1/68.2667\n"
        "    expected relative weight to nice(0)=1/68.2667\n"
        "least nice ghOSt thread:\n"
        "  first stage as nice=0: counter=100\n"
        "    estimated relative weight to nice(0)=0.5\n"
        "  second_stage as nice=-20: counter=88761\n"
        "    estimated relative weight to nice(0)=86.6807\n"
        "    expected relative weight to nice(0)=86.6807\n"
        "default nice ghOSt thread:\n"
        "  first stage as nice=0: counter=200\n"
        "  second_stage as nice=0: counter=1024\n"
    )


def test_threads_are_counted_by_cpu_and_stage() -> None:
    stages = [[1, 1, 1], [1, 1, 3], [1, 3, 3], [1, 3, 3], [3, 3, 3]]
    rows = [line.split() for line in balance_text(stages, CpuSet([1, 3])).splitlines()]
    assert rows == [["cpu", "first", "second", "third", "fourth", "final"], [*"132110"], [*"301223"]]


def test_simple_exp_runs_each_test_of_the_original() -> None:
    done = experiment("simple-exp", "--scheduler", "eevdf", "--threads", 20, "--spin-threads", 2)
    assert done.returncode == 0, done.stderr
    names, times = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    tests = "SimpleExp SimpleExpMany BusyExp TaskDeparted TaskDepartedMany TaskDepartedManyRace"
    assert names == tests.split()
    took = [float(line.removeprefix(" took ").removesuffix(" ms")) for line in times]
    assert all(took[n] >= least for n, least in enumerate((10, 20, 10, 10, 10, 0)))


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="nice -20 needs root")
def test_weights_of_nice_values_are_seen_under_eevdf() -> None:
    done = experiment("simple-cfs", "--scheduler", "eevdf", "--duration", "300ms", "--json")
    assert done.returncode == 0, done.stderr
    nice, balance = map(json.loads, done.stdout.splitlines())
    (nicest, _, default) = (second for _, second in nice["counters"])
    assert nice["counters"][1][1] > 10 * max(nicest, default)
    assert [len(stage) for stage in balance["stages"]] == [10] * 5
    assert len(set(balance["stages"][0])) == 1, "all begin on one CPU"


# ---- costs ----


def test_costs_are_in_null_system_calls() -> None:
    done = experiment("costs", "eevdf", "--loops", 500, "--json")
    assert done.returncode == 0, done.stderr
    null, yields, futexes = map(json.loads, done.stdout.splitlines())
    assert (null["what"], null["calls"]) == ("null system call", 1)
    for one in (yields, futexes):
        assert one["ns"] > null["ns"]
        assert one["calls"] == pytest.approx(one["ns"] / null["ns"])


def test_table_of_costs_has_80_columns_and_a_dash_for_what_is_not_known() -> None:
    cost = Cost("fifo_centralized:slice=10ms", "message, read and handled", 123456.7, 1234.5, None)
    head, _, row = table([cost]).splitlines()
    assert max(map(len, (head, row))) <= 80
    assert row.endswith(" -")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("global-scalability",), "Missing argument"),
        (("global-scalability", "none", "--resume"), "--resume needs --output DIR"),
        (("global-scalability", "none", "--global-cpu", "0"), "CPU 0 is skipped"),
        (("global-scalability", "none", "--max-cpus", "2"), "leave none for tasks"),
        (("global-scalability", "none", "none", "--use-cpu0"), '"none" is given twice'),
        (("global-scalability", "none", "--threads-per-cpu", "1,x"), '"1,x" is not a list of numbers'),
        (("costs", "eevdf", "--policy", "rr"), "--policy is for ghost"),
        (("simple-cfs", "--duration", "0"), "too short"),
    ],
)
def test_bad_command_line_is_refused_with_the_reason(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_dry_run_tells_the_cells_and_measures_nothing(tmp_path: Path) -> None:
    line = ("global-scalability", "none", "--use-cpu0", "--max-cpus", "2", "--dry-run", "--output", str(tmp_path / "r"))
    done = CliRunner().invoke(command, line)
    if len(os.sched_getaffinity(0)) > 1:
        assert "5 threads, 1,000,000 loops each" in done.output
        assert "1 cells, about" in done.output
    assert not (tmp_path / "r").exists()


def test_unknown_policy_is_named() -> None:
    with pytest.raises(GhostError, match="zebra"):
        scalability.candidate("zebra", 1)
