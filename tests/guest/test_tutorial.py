# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.md: its policies, built step by step, schedule real tasks, and its commands succeed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from command import Done, start
from ghostbpf.schedulers.agents.kernel import params_of
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.registry import from_file
from policy_file import scheduled, wake
from workload import Child, Workload, runtime_ns, sched_field, until

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import DOCS, blocks, commands

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

TUTORIAL = DOCS / "tutorial.md"
MS = 10**6


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """lab.py with the classes of all steps, in a directory that also has load.sh."""
    (tmp_path / "lab.py").write_text("\n\n".join(blocks("tutorial.md", "python")))
    (load,) = blocks("tutorial.md", "sh")
    (tmp_path / "load.sh").write_text(load)
    return tmp_path / "lab.py"


def shell(line: str, directory: Path) -> Done:
    """Run a line of the tutorial."""
    program, *arguments = shlex.split(line)
    assert program == "ghostbpf"
    return start(*arguments, first=lambda: os.chdir(directory)).wait()


@pytest.mark.soak
def test_each_command_of_the_tutorial_succeeds(lab: Path) -> None:
    lines = commands("tutorial.md")
    assert len(lines) > 8
    for line in lines:
        done = shell(line, lab.parent)
        assert done.status == 0, f"{line}\n{done.err}"
        if "load.sh" in line:
            assert sorted(done.out.split()) == list("abcdef")
        if "show" in line:
            assert "agent: deciding" in done.out
            assert ("lab_least" if "--tasks" in line else "lab_turns") in done.out
    assert Enclaves.open() is None
    assert (lab.parent / "my_policy" / "my_policy.py").exists()


def test_tutorial_names_each_class_it_builds(lab: Path) -> None:
    classes = re.findall(r"^class (\w+)", lab.read_text(), re.MULTILINE)
    assert classes == ["Fifo", "Turns", "Least", "Tuned"]
    for name in classes:
        assert f"lab.py:{name}" in TUTORIAL.read_text()
        assert from_file(f"{lab}:{name}").name == f"lab_{name.lower()}"


def test_fifo_runs_in_order_of_arrival_without_slices(lab: Path, workload: Workload) -> None:
    with scheduled(f"{lab}:Fifo", "1") as run:
        first = workload.spinner(run.enclave)
        rest = [workload.spawn(lambda me: (me.log("runs"), me.spin(5)), run.enclave) for _ in range(4)]
        ran, switched = runtime_ns(first.pid), sched_field(first.pid, "nr_involuntary_switches")
        until(lambda: runtime_ns(first.pid) > ran + 500 * MS)
        # Higher classes interrupt it now and then; slices of 20 ms would do so as often as this alone.
        assert sched_field(first.pid, "nr_involuntary_switches") - switched < 25
        first.stop()
        for child in rest:
            assert child.wait() == 0
        assert [index for index, _ in workload.read_log()] == [child.index for child in rest]


def test_turns_share_a_cpu_equally(lab: Path, workload: Workload) -> None:
    with scheduled(f"{lab}:Turns", "1", "--slice", "10ms") as run:
        children = [workload.spinner(run.enclave) for _ in range(3)]
        ran = _ran(children, 900)
        assert min(ran) > 0.15 * sum(ran), ran
        assert run.agent.committed > 20


def test_least_favours_the_task_with_least_run_time(lab: Path, workload: Workload) -> None:
    with scheduled(f"{lab}:Least", "1", "--slice", "10ms") as run:
        old = workload.spinner(run.enclave)
        until(lambda: runtime_ns(old.pid) > 600 * MS)
        new = workload.spinner(run.enclave)
        before = runtime_ns(old.pid)
        until(lambda: runtime_ns(new.pid) > 200 * MS)
        assert runtime_ns(old.pid) - before < 100 * MS


def test_least_preempts_a_task_with_an_endless_slice(lab: Path, workload: Workload) -> None:
    with scheduled(f"{lab}:Least", "1", "--slice", "inf") as run:
        sleeper = workload.sleeper(run.enclave)
        hog = workload.spinner(run.enclave)
        until(lambda: runtime_ns(hog.pid) > 100 * MS)
        for _ in range(5):
            wake(sleeper)
            hog.progress()
        assert run.enclave.counters().switches >= 10


def test_tuned_has_short_slices_only_while_cpus_are_scarce(lab: Path, workload: Workload) -> None:
    with scheduled(f"{lab}:Tuned", "1-2") as run:
        _, params = params_of(run.enclave, from_file(f"{lab}:Tuned"))
        assert params.slice_ns == 10 * MS
        hogs = [workload.spinner(run.enclave) for _ in range(4)]
        until(lambda: params.slice_ns == 2 * MS)
        for hog in hogs:
            hog.stop()
        sleepers = [workload.sleeper(run.enclave) for _ in range(2)]

        def is_long() -> bool:
            for sleeper in sleepers:
                wake(sleeper, 3)
            return params.slice_ns == 20 * MS

        until(is_long)


def _ran(children: list[Child], ms: int) -> list[int]:
    """The run time of each child while they run ``ms`` in total."""
    for child in children:
        child.progress()
    before = [runtime_ns(child.pid) for child in children]
    until(lambda: sum(runtime_ns(child.pid) for child in children) - sum(before) > ms * MS)
    return [runtime_ns(child.pid) - ran for child, ran in zip(children, before, strict=True)]
