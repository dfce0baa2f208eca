# SPDX-License-Identifier: Apache-2.0
"""Enclaves from within a pid namespace, as in a container: a number names a task of that namespace only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done, fork, ghostbpf, running
from ghostbpf.schedulers.enclave import Enclaves
from workload import Child, MakeEnclave, Workload, in_ext, present_cpus, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def contained(body: Callable[[], object]) -> None:
    """Run ``body`` in a new pid namespace with its own /proc; AssertionError if ``body`` raises."""

    def enter() -> None:
        os.unshare(os.CLONE_NEWPID | os.CLONE_NEWNS)
        if pid := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
            body()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    done = fork(enter).wait()
    assert done.status == 0, done.err


def sleeper_with_pid(tid: int) -> int:
    """Fork a sleeper whose pid in the caller's pid namespace is ``tid``; no other task there may have it."""
    LAST_PID.write_text(str(tid - 1))
    pid = os.fork()
    if not pid:
        os.sched_setaffinity(0, set(present_cpus()))
        os.execvp("sleep", ["sleep", "60"])
    assert pid == tid
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    return pid


def check_unmoved(outside: Child) -> None:
    """Check that the task outside, which has the same number, was not moved."""
    assert os.sched_getscheduler(outside.pid) == os.SCHED_OTHER
    assert not in_ext(outside.pid)


@pytest.mark.soak
def test_task_of_the_namespace_joins_and_leaves_and_its_namesake_outside_does_not(
    workload: Workload, enclave: MakeEnclave
) -> None:
    e, outside = enclave("1-2"), workload.sleeper()

    def body() -> None:
        pid = sleeper_with_pid(outside.pid)
        assert ghostbpf("enclave", "add", e.id, pid) == Done(0, f"1 task joined enclave {e.id}\n", "")
        assert in_ext(pid)
        shown = json.loads(ghostbpf("enclave", "show", e.id, "--tasks", "--json").out)
        assert [(task["tid"], task["pid"], task["comm"]) for task in shown["task_list"]] == [(pid, pid, "sleep")]
        assert ghostbpf("enclave", "rm", e.id, pid) == Done(0, f"1 task left enclave {e.id}\n", "")
        assert not in_ext(pid)
        assert ghostbpf("enclave", "add", e.id, "--tid", pid).status == 0
        done = ghostbpf("enclave", "add", e.id, os.getpid() + 4000)
        assert done.status == 1
        assert done.err.startswith(f"error: cannot move task {os.getpid() + 4000}: there is no such task\n")
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    contained(body)
    check_unmoved(outside)
    assert not e.tasks()


@pytest.mark.soak
def test_rule_in_the_namespace_adds_only_its_tasks(workload: Workload, enclave: MakeEnclave) -> None:
    e, outside = enclave("1-2"), workload.sleeper()

    def body() -> None:
        pid = sleeper_with_pid(outside.pid)
        done = ghostbpf("enclave", "auto-join", e.id, "--comm", "sleep", "--once", "--json")
        assert [json.loads(line)["tid"] for line in done.out.splitlines()] == [pid], done.err
        assert in_ext(pid)
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    contained(body)
    check_unmoved(outside)


@pytest.mark.parametrize("policy", ["biff", pytest.param("fifo_centralized", marks=pytest.mark.soak)])
def test_command_runs_in_an_enclave_and_leaves_nothing(policy: str) -> None:
    def body() -> None:
        show = "grep ext.enabled /proc/self/sched; for n in 1 2 3 4; do sleep 0.01 & done; wait; exit 3"
        with running("run", policy, "--cpus", "1-2", "--", "sh", "-c", show) as run:
            done = run.wait()
        assert (done.status, done.err) == (3, "")
        assert done.out.split() == ["ext.enabled", ":", "1"]

    contained(body)
    assert Enclaves.open() is None


@pytest.mark.soak
def test_agent_decides_in_the_namespace(workload: Workload) -> None:
    def body() -> None:
        with running("run", "fifo_centralized", "--cpus", "1-2", "--fastpath", "off") as run:
            run.until(lambda: "add tasks" in run.err)
            pid = sleeper_with_pid(300)
            assert ghostbpf("enclave", "add", 1, pid).status == 0
            agent = json.loads(ghostbpf("enclave", "show", 1, "--json").out)["agent"]
            assert agent["state"] == "deciding"
            assert run.pid < agent["tid"] < pid, "its number in this namespace"
            everywhere = ",".join(map(str, present_cpus()))
            spinner = subprocess.Popen(["taskset", "-c", everywhere, "sh", "-c", "while :; do sleep 0.01; done"])
            assert ghostbpf("enclave", "add", 1, spinner.pid).status == 0

            def committed() -> bool:
                return json.loads(ghostbpf("enclave", "show", 1, "--json").out)["agent"]["committed"] > 0

            until(committed)
            states = json.loads(ghostbpf("enclave", "show", 1, "--tasks", "--json").out)["task_list"]
            assert spinner.pid in {task["tid"] for task in states if task["state"]}
            run.signal(2)
            assert run.wait().status == 0
            for number in (pid, spinner.pid):
                os.kill(number, 9)
                os.waitpid(number, 0)

    contained(body)
    assert Enclaves.open() is None


def test_enclave_with_tasks_outside_is_not_destroyed_from_within(workload: Workload, enclave: MakeEnclave) -> None:
    e, outside = enclave("1-2"), workload.sleeper()
    e.add_process(outside.pid)

    def body() -> None:
        for arguments in ((e.id,), ("--all",)):
            done = ghostbpf("enclave", "destroy", *arguments)
            assert done.status == 1
            assert f"error: enclave {e.id} has 1 tasks outside of this pid namespace\n  try: " in done.err, done.err
        assert ghostbpf("enclave", "rm", e.id, outside.pid).status == 1

    contained(body)
    assert in_ext(outside.pid)
    assert [task.tid for task in e.tasks()] == [outside.pid]


@pytest.mark.soak
def test_proc_of_another_namespace_is_refused(workload: Workload, enclave: MakeEnclave) -> None:
    e, outside = enclave("1-2"), workload.sleeper()

    def body() -> None:
        subprocess.run(["umount", "/proc"], check=True)
        for arguments in (
            ("enclave", "add", e.id, outside.pid),
            ("enclave", "auto-join", e.id, "--comm", "*", "--once"),
        ):
            done = ghostbpf(*arguments)
            assert done.status == 1
            assert "error: /proc is not that of the pid namespace of process" in done.err, done.err

    contained(body)
    check_unmoved(outside)
    assert not e.tasks()
