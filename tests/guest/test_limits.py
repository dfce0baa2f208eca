# SPDX-License-Identifier: Apache-2.0
"""Warnings of tasks that do not suit an enclave: limits that are void there, and affinities without its CPUs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command import ghostbpf
from ghostbpf.loaders import sched_ext
from workload import MakeEnclave, Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]


def enter(cgroup: Path) -> Callable[[], object]:
    """For ``first``: move the process into ``cgroup``."""
    return lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def elsewhere() -> int:
    """The number of tasks of enclave 1 that run elsewhere, from ``enclave ls``."""
    return int(json.loads(ghostbpf("enclave", "ls", "--json").out)["elsewhere"])


@pytest.mark.soak
def test_limits_that_do_not_hold_are_named_once_per_command(
    workload: Workload, enclave: MakeEnclave, cgroup: Path
) -> None:
    enclave("1-2")
    (cgroup / "cpu.max").write_text("400000 100000")  # which slows down no test
    (cgroup / "below/cpu.weight").write_text("50")
    sleepers = [workload.sleeper() for _ in range(2)]
    for sleeper in sleepers:
        (cgroup / "below/cgroup.procs").write_text(str(sleeper.pid))
    expected = ["warning: cpu.weight 50 of cgroup /ghostbpf-test/below does not hold in enclave 1"]

    def warned(err: str) -> list[str]:
        return [line for line in err.splitlines() if line.startswith("warning")]

    assert warned(ghostbpf("enclave", "add", 1, *(sleeper.pid for sleeper in sleepers)).err) == expected
    for command in (("add", 1, "--cgroup", "/ghostbpf-test"), ("auto-join", 1, "--cgroup", "/ghostbpf-test", "--once")):
        for sleeper in sleepers:
            os.sched_setscheduler(sleeper.pid, os.SCHED_OTHER, os.sched_param(0))
        assert warned(ghostbpf("enclave", *command).err) == expected
    run = ghostbpf("run", "biff", "--enclave", 1, "--", "true", first=enter(cgroup / "below"))
    assert (run.status, warned(run.err)) == (0, expected)
    row = next(
        r for r in map(json.loads, ghostbpf("doctor", "--json").out.splitlines()) if r["what"] == "cgroup limits"
    )
    assert row["verdict"] == "warn"
    assert "cpu.weight 50 of cgroup /ghostbpf-test/below" in row["found"]
    assert "cpu.max" not in row["found"]
    assert ghostbpf("enclave", "limits", 1, "off").status == 0
    assert "cpu.max 400000 100000 of cgroup /ghostbpf-test" in ghostbpf("doctor", "--json").out


@pytest.mark.soak
def test_command_that_may_use_no_cpu_of_the_enclave_does_not_run(cgroup: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    done = ghostbpf("run", "biff", "--cpus", "1-2", "--", "touch", ran, first=lambda: os.sched_setaffinity(0, {0, 3}))
    assert (done.status, done.out, ran.exists()) == (1, "", False)
    assert "the command may use CPU 0,3 by its affinity, and enclave 1 has CPU 1-2" in done.err
    assert "--cpus 0,3" in done.err
    # A partition takes CPU 3 from every other cgroup.
    (cgroup / "cpuset.cpus").write_text("3")
    (cgroup / "cpuset.cpus.partition").write_text("isolated")
    assert (cgroup / "cpuset.cpus.partition").read_text() == "isolated\n"
    done = ghostbpf("run", "biff", "--cpus", "3", "--", "touch", ran, first=lambda: os.sched_setaffinity(0, range(4)))
    assert (done.status, ran.exists()) == (1, False)
    assert "by the cpuset of cgroup /, and enclave 1 has CPU 3" in done.err
    done = ghostbpf("run", "biff", "--cpus", "3", "--", "touch", ran, first=enter(cgroup))
    assert (done.status, done.err, ran.exists()) == (0, "", True)


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.soak), "after"])
def test_isolated_partition_does_not_refuse_the_attach_and_its_tasks_run_in_an_enclave(
    workload: Workload, enclave: MakeEnclave, cgroup: Path, moment: str
) -> None:
    """An isolated partition takes its CPU out of the scheduling domains, as isolcpus= does at boot."""

    def isolate() -> None:
        (cgroup / "cpuset.cpus").write_text("3")
        (cgroup / "cpuset.cpus.partition").write_text("isolated")
        assert (cgroup / "cpuset.cpus.partition").read_text() == "isolated\n"
        assert (cgroup.parent / "cpuset.cpus.isolated").read_text() == "3\n"

    if moment == "before":
        isolate()
    biff = enclave("2-3")  # the first enclave: the core is attached here
    if moment == "after":
        isolate()
    isolated, other = workload.spinner(start=False), workload.spinner(biff)
    (cgroup / "cgroup.procs").write_text(str(isolated.pid))
    assert ghostbpf("enclave", "add", 1, isolated.pid).err == ""
    isolated.wake()
    until(lambda: (isolated.at, other.at) == (3, 2), "each runs on the CPU that it may use")
    assert {task.tid for task in biff.tasks()} == {isolated.pid, other.pid}
    assert elsewhere() == 0
    assert sched_ext.status().state == "enabled"


@pytest.mark.soak
def test_tasks_that_may_use_no_cpu_of_the_enclave_are_reported(
    workload: Workload, enclave: MakeEnclave, cgroup: Path
) -> None:
    biff = enclave("1-2")
    inside, outside = workload.sleeper(cpus=[1, 3]), workload.sleeper(cpus=[0, 3])
    done = ghostbpf("enclave", "add", 1, inside.pid, outside.pid)
    assert (done.status, done.out) == (0, "2 tasks joined enclave 1\n")
    assert "1 task may use none of the CPUs of enclave 1, 1-2, and will run elsewhere: " in done.err
    assert f" {outside.pid} (CPU 0,3)\n" in done.err
    assert f" {inside.pid}" not in done.err
    assert elsewhere() == 1
    assert [task.tid for task in biff.tasks() if task.elsewhere] == [outside.pid]
    os.sched_setaffinity(outside.pid, {2})
    assert elsewhere() == 0
    # Later changes by sched_setaffinity() and by a cpuset are shown, too.
    os.sched_setaffinity(outside.pid, {3})
    (cgroup / "cpuset.cpus").write_text("0")
    (cgroup / "cgroup.procs").write_text(str(inside.pid))
    assert elsewhere() == 2
    assert "elsewhere: 2" in ghostbpf("enclave", "show", 1).out
    (cgroup / "cpuset.cpus").write_text("0-1")
    until(lambda: elsewhere() == 1, "it may use CPU 1 again")


def has_children(me: Me) -> None:
    """Fork a child and a grandchild; all wait."""
    if not os.fork():
        if not os.fork():
            signal.pause()
        signal.pause()
    me.block()


def test_descendants_that_stay_outside_are_reported_and_tree_adds_them(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1-2")
    head = workload.spawn(has_children)

    def below(pid: int) -> list[int]:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return children + [one for child in children for one in below(child)]

    until(lambda: len(below(head.pid)) == 2, "both descendants exist")
    done = ghostbpf("enclave", "add", 1, head.pid)
    assert (done.status, done.out, [task.tid for task in biff.tasks()]) == (0, "1 task joined enclave 1\n", [head.pid])
    assert "warning: 2 descendants did not join: " in done.err
    assert "try: --tree" in done.err
    assert all(f" {pid}" in done.err for pid in below(head.pid))
    done = ghostbpf("enclave", "add", 1, head.pid, "--tree")
    assert (done.status, "warning" in done.err) == (0, False)
    assert {task.tid for task in biff.tasks()} == {head.pid, *below(head.pid)}
