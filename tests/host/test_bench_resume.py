# SPDX-License-Identifier: Apache-2.0
"""A benchmark that was killed goes on where it stopped: same plan, same seed, nothing measured twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.experiments import journal
from ghostbpf.experiments.bench import kept, report, rounds, workloads
from ghostbpf.experiments.bench.plan import Plan, candidates
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.launch import signals_blocked, termination_signals

#: The steps of ``ghostbpf bench`` without its check of the kernel: EEVDF needs no sched_ext.
SCRIPT = """
import sys
from test_bench_resume import measure, plan
measure(plan(sys.argv[1]), sys.argv[1] + "/kept.jsonl")
"""


def plan(directory: str, rounds: int = 3, seed: int = 5) -> Plan:
    """EEVDF twice, on a command that writes a line for each run."""
    texts = [f"{name}=sh -c 'echo {name} >>{directory}/runs'" for name in ("a", "b")]
    cpus = CpuSet(os.sched_getaffinity(0))
    return Plan([workloads.parse(text) for text in texts], candidates((), ()), rounds, seed, cpus)


def measure(of: Plan, path: str) -> rounds.Results:
    """Measure what the file at ``path`` lacks of a plan."""
    file, earlier = kept.resume(Path(path), report.header(of, "1"))
    with signals_blocked({signal.SIGCHLD, *termination_signals()}):
        return rounds.measure(of, report.Printer(of, file, as_json=False), earlier)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmark_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    line = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL) as child:
        ends = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > 4):
            assert time.monotonic() < ends
            time.sleep(0.005)
        child.kill()
    before = [row for row in rows(path) if row["type"] == "measurement"]
    assert 4 <= len(before) < 12
    (tmp_path / "runs").write_text("")
    of = plan(str(tmp_path))
    results = measure(of, str(path))
    measured = [row for row in rows(path) if row["type"] == "measurement"]
    assert measured[: len(before)] == before
    expected = [(n, w.text, c.name) for n, w, order in of.order() for c in order]
    assert [(row["round"], row["workload"], row["candidate"]) for row in measured] == expected
    assert {number for runs in results.measured.values() for number in runs} == {1, 2, 3}
    # What is left, and a warm-up of each workload that has something left.
    left = [workload for _, workload, _ in expected[len(before) :]]
    assert len((tmp_path / "runs").read_text().split()) == len(left) + len(set(left))
    (tmp_path / "runs").write_text("")
    measure(of, str(path))
    assert (tmp_path / "runs").read_text() == "", "all was measured"


@pytest.mark.parametrize(("change", "name"), [({"rounds": 4}, "rounds is 3, not 4"), ({"seed": 6}, "seed is 5, not 6")])
def test_changed_plan_is_refused_by_the_name_of_the_difference(tmp_path: Path, change: Any, name: str) -> None:
    path = tmp_path / "kept.jsonl"
    journal.create(path, report.header(plan(str(tmp_path)), "1"))
    before = path.read_bytes()
    with pytest.raises(GhostError, match=f"results of another run: its {name}"):
        kept.resume(path, report.header(plan(str(tmp_path), **change), "1"))
    assert path.read_bytes() == before


def test_seed_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    assert kept.seed(path) is None
    journal.create(path, report.header(plan(str(tmp_path)), "1"))
    assert kept.seed(path) == 5


@pytest.mark.parametrize("damage", ["{", "[]", '{"type": "run"}', '{"type": "measurement", "round": 1}'])
def test_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "kept.jsonl"
    header = report.header(plan(str(tmp_path)), "1")
    journal.create(path, header)
    with path.open("a") as file:
        file.write(damage + "\n")
    before = path.read_bytes()
    with pytest.raises(GhostError, match=r"kept.jsonl:2 is damaged"):
        kept.resume(path, header)
    assert path.read_bytes() == before


def test_failure_is_kept_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    of = plan(str(tmp_path))
    file, _ = kept.resume(path, report.header(of, "1"))
    file.append(kept.failure_row(rounds.Failure(rounds.LOST, "EEVDF", "a", 1, "sysrq")))
    _, results = kept.resume(path, report.header(of, "1"))
    assert not results.failures
