# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf run`` with an agent: its output while the agent decides, when it dies, and when another takes over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from command import ghostbpf, running
from ghostbpf.schedulers.enclave import Enclaves
from workload import Workload, until

pytestmark = pytest.mark.kernel_independent

BAD = """
from ghostbpf.schedulers.userspace import AgentPolicy

class Bad(AgentPolicy):
    name = "bad"

    def enqueue(self, task):
        raise KeyError("a mistake")

    def dequeue(self, task):
        pass

    def schedule(self):
        return ()
"""


def agent_pid() -> int:
    def found() -> int:
        enclaves = Enclaves.open()
        agents = [one.agent for one in enclaves or ()]
        return next((agent.tid for agent in agents if agent is not None), 0)

    return int(until(found, "there is an agent"))


def test_command_runs_under_an_agent_and_ends_with_its_status() -> None:
    done = ghostbpf("run", "fifo_centralized", "--cpus", "1-3", "--slice", "5ms", "--", "sh", "-c", "exit 7")
    assert (done.status, done.out, done.err) == (7, "", "")


def test_ctrl_c_while_the_agent_starts_removes_the_enclave_and_reports_no_failure() -> None:
    with running("run", "fifo_centralized", "--cpus", "1-3", "--keep") as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        run.until(lambda: bool(children.read_text()))
        agent_process = int(children.read_text())
        os.kill(agent_process, signal.SIGSTOP)
        run.until(lambda: bool(list(Enclaves.open() or ())))
        run.signal(signal.SIGINT)
        done = run.wait()
    assert (done.status, done.err) == (130, "")
    assert not list(Enclaves.open() or ())
    assert not Path(f"/proc/{agent_process}").exists()


@pytest.mark.soak
def test_killed_agent_is_reported_and_the_command_runs_on() -> None:
    command = ("sh", "-c", "echo it starts; sleep 2; echo it ends")
    with running("run", "fifo_centralized", "--cpus", "1-3", "--fastpath", "off", "--", *command) as run:
        run.until(lambda: "it starts" in run.out)
        os.kill(agent_pid(), signal.SIGKILL)
        done = run.wait()
    assert "it ends" in done.out
    assert done.status == 1
    assert "the agent of enclave 1 is gone: killed by SIGKILL" in done.err
    assert "ghostbpf run POLICY --enclave 1" in done.err


@pytest.mark.soak
def test_exception_in_a_policy_is_reported_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    options = ("--cpus", "1", "--fastpath", "off")
    done = ghostbpf("run", tmp_path / "bad.py", *options, "--", "sh", "-c", "echo it ends")
    assert (done.status, done.out) == (1, "it ends\n")
    assert re.search(r"the agent of enclave 1 is gone: KeyError: 'a mistake' \(bad.py:\d+\)", done.err), done.err


@pytest.mark.soak
def test_all_has_an_agent_schedule_ordinary_tasks(workload: Workload) -> None:
    bystander = workload.spinner()
    script = f"cat /proc/{bystander.pid}/sched; exit 6"
    done = ghostbpf("run", "fifo_centralized", "--all", "--", "sh", "-c", script)
    assert (done.status, done.err) == (6, "")
    assert re.search(r"^ext.enabled\s*:\s*1$", done.out, re.M)
    bystander.progress()


@pytest.mark.soak
def test_kept_agent_detaches_from_the_terminal_and_is_listed() -> None:
    line = ["taskset", "-c", "0-3", "ghostbpf", "run", "fifo_centralized", "--cpus", "1-2", "--keep", "--", "true"]
    subprocess.run(line, capture_output=True, timeout=100, check=True)
    shown = json.loads(ghostbpf("enclave", "show", 1, "--tasks", "--json").out)
    assert shown["agent"]["state"] == "deciding"
    assert "agent: deciding, task" in ghostbpf("enclave", "show", 1).out
    done = ghostbpf("enclave", "swap", 1, "fifo_per_cpu")
    assert (done.status, "ghostbpf run fifo_per_cpu --enclave 1" in done.err) == (1, True)
    with running("run", "fifo_per_cpu", "--enclave", 1) as run:
        before = shown["agent"]["tid"]
        run.until(lambda: "is scheduled by" in run.err)
        assert agent_pid() != before
        run.signal(signal.SIGINT)
        assert run.wait().status == 0
    assert "agent: gone" in ghostbpf("enclave", "show", 1).out
    assert ghostbpf("enclave", "destroy", 1).status == 0
