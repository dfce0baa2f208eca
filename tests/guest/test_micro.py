# SPDX-License-Identifier: Apache-2.0
"""ghOSt's microbenchmarks of ``ghostbpf experiment`` under policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import start

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent, pytest.mark.soak]


@pytest.mark.timeout(600)
def test_each_test_of_simple_exp_ends_with_threads_that_leave_the_enclave() -> None:
    line = ("experiment", "simple-exp", "--threads", 50, "--spin-threads", 5, "--cpus", "1-3", "--json")
    done = start(*line).wait(timeout=500)
    assert done.status == 0, done.err
    names = "SimpleExp SimpleExpMany BusyExp TaskDeparted TaskDepartedMany TaskDepartedManyRace"
    assert [json.loads(row)["test"] for row in done.out.splitlines()] == names.split()


@pytest.mark.timeout(600)
def test_each_test_of_simple_edf_ends_under_edf_and_its_hints() -> None:
    line = ("experiment", "simple-edf", "--threads", 10, "--spin-threads", 5, "--cpus", "1-3", "--json")
    done = start(*line).wait(timeout=500)
    assert done.status == 0, done.err
    took = {row["test"]: row["ns"] / 1e6 for row in map(json.loads, done.out.splitlines())}
    names = "SimpleExp SimpleExpMany SimpleRepeatable BusyExp TaskDeparted TaskDepartedMany"
    assert [*took] == names.split()
    assert took["SimpleRepeatable"] >= 1000, "ten periods of 100 ms"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["sol", "edf", "shinjuku"])
def test_global_agent_schedules_threads_that_yield(tmp_path: Path, policy: str) -> None:
    line = (
        "experiment",
        "global-scalability",
        policy,
        "--max-cpus",
        3,
        "--total-loops",
        50,
        "--output",
        tmp_path / "r",
    )
    done = start(*line).wait(timeout=500)
    assert done.status == 0, done.err
    head, row = done.out.splitlines()[-2:]
    assert head == "nr_task_cpus,scheds_per_sec,loops_per_thread"
    cpus, rate, loops = row.split(",")
    assert (cpus, loops) == ("1", "10")
    assert float(rate) > 0
