# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf bench``: policies and other schedulers side by side, and what it says of those that fail."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Done, ghostbpf, running, start
from ghostbpf.schedulers import core
from kernel_log import KernelLog
from workload import ext_tasks

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]

FIFO = Path(__file__).parents[2] / "examples" / "fifo.py"
#: Ejects the scheduler that runs; under EEVDF it ejects nothing.
EJECTS = "eject=sh -c 'echo S >/proc/sysrq-trigger; until grep -q disabled /sys/kernel/sched_ext/state; do :; done'"


def rows(done: Done, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, done.out.splitlines()) if row["type"] == kind]


@pytest.fixture
def ejection(kernel_log: KernelLog) -> Iterator[None]:
    """Expect an ejection of the core; the pins that it leaves are removed at the end."""
    kernel_log.expect("ghostbpf")
    yield
    if core.ROOT.exists():
        core.clear_pins()


@pytest.mark.soak
def test_bench_measures_a_policy_and_another_scheduler_and_leaves_out_one_that_cannot_start() -> None:
    others = ("--with", f"fifo={sys.executable} {FIFO} 3600", "--with", "broken=sh -c 'echo no BPF here; exit 3'")
    done = ghostbpf("bench", "pipe:loops=50", "--cpus", "1-3", "--rounds", 1, "--seed", 7, "--json", *others,
                    "--policy", "biff:slice=5ms")  # fmt: skip
    assert done.status == 1, done.err
    (run,) = rows(done, "run")
    assert (run["cpus"], run["seed"], run["rounds"]) == ("1-3", 7, 1)
    assert [*run["candidates"]] == ["EEVDF", "EEVDF again", "biff:slice=5ms", "fifo", "broken"]
    measured = {row["candidate"]: row["metrics"]["time"]["value"] for row in rows(done, "measurement")}
    assert measured.keys() == {"EEVDF", "EEVDF again", "biff:slice=5ms", "fifo"}
    assert min(measured.values()) > 0
    (failure,) = rows(done, "failure")
    assert (failure["kind"], failure["candidate"], failure["round"]) == ("start", "broken", 1)
    assert "ended with status 3 and attached no scheduler: no BPF here" in failure["reason"]
    assert "error: broken did not start in round 1 of pipe:loops=50" in done.err
    summaries = {row["candidate"]: row for row in rows(done, "summary")}
    assert summaries.keys() == measured.keys()
    for name in ("biff:slice=5ms", "fifo"):
        assert summaries[name]["ratio"] == pytest.approx(measured[name] / measured["EEVDF"])


@pytest.mark.usefixtures("ejection")
def test_scheduler_ejected_while_it_is_measured_has_no_figures_and_status_9() -> None:
    done = ghostbpf("bench", EJECTS, "--policy", "biff", "--cpus", "1-3", "--rounds", 1)
    assert done.status == 9, done.err
    assert "error: biff was ejected in round 1 of eject" in done.err
    assert "sysrq" in done.err.lower()
    table, _, rest = done.out.partition("\n\n")
    assert "EEVDF again" in table
    assert "biff" not in table
    assert rest.startswith("biff has no figures: biff was ejected in round 1")


@pytest.mark.soak
def test_interrupted_bench_prints_what_it_has_measured() -> None:
    with running("bench", "pipe:loops=50", "--policy", "biff", "--cpus", "1-3", "--rounds", 100) as process:
        process.until(lambda: "round 2 of 100" in process.err)
        process.signal(signal.SIGINT)
        done = process.wait()
    assert done.status == 130, done.err
    assert "Traceback" not in done.err
    assert "biff" in done.out
    assert "interrupted: 1 of 100 rounds are complete" in done.out


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", ["biff", "fifo_centralized"])
def test_memcached_serves_from_within_the_enclave(policy: str) -> None:
    line = ("bench", "memcached:rate=50,c=3,t=2,r=3", "--policy", policy, "--cpus", "1-3", "--rounds", 1, "--json")
    names = set[str]()
    with running(*line) as process:
        while not process.ended(0.1):
            names |= set(ext_tasks().values())
        done = process.wait(timeout=800)
    assert done.status == 0, done.err
    assert {"memcached", "mc-worker"} <= names
    measured = {row["candidate"]: row["metrics"] for row in rows(done, "measurement")}
    assert measured.keys() == {"EEVDF", "EEVDF again", policy}
    for metrics in measured.values():
        assert 0 < metrics["p50"]["value"] <= metrics["p99"]["value"]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_each_workload_that_needs_no_compiler_has_its_figures_under_a_policy() -> None:
    small = [f"stress-{name}" for name in ("switch:ops=500", "yield:seconds=1", "context:ops=50", "futex:ops=500")]
    small += ["stress-fork:ops=20", "stress-pthread:ops=50", "threads:threads=100,bursts=2", "wakeup:r=1,n=1,F=16"]
    small += ["hackbench:groups=1,loops=10", "messaging:groups=1,loops=10", "cyclictest:t=2,i=20000,l=40"]
    done = start("bench", *small, "--policy", "biff", "--cpus", "1-3", "--rounds", 1, "--json").wait(timeout=1200)
    assert done.status == 0, done.err
    measured = {row["workload"] for row in rows(done, "measurement") if row["candidate"] == "biff"}
    assert measured == {*small}
