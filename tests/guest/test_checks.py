# SPDX-License-Identifier: Apache-2.0
"""The checks after each test find what they check for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import kernel_events as events
import pytest
import refusals as refused
from agents import MakeAgent, manual, task_of
from command import ghostbpf
from ghostbpf.schedulers.agents.task import Task
from ghostbpf.schedulers.tasks import SCHED_EXT
from ghostbpf.schedulers.userspace import Transaction, TxnState
from kernel_events import KernelEvents
from refusals import Refusals
from workload import MakeEnclave, Workload, ext_tasks, until

pytestmark = pytest.mark.usefixtures("quiet")


def test_events_of_schedulers_of_other_processes_are_counted(kernel_events: KernelEvents) -> None:
    """The kernel bypasses each scheduler as it attaches and detaches; no file has that count afterwards."""
    assert ghostbpf("run", "biff", "--cpus", "1", "--", "true").status == 0
    assert kernel_events.counts() == {events.BYPASS: 2}
    assert not kernel_events.trouble()


def test_events_beyond_attach_and_detach_are_trouble(
    enclave: MakeEnclave, kernel_events: KernelEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave("1")
    monkeypatch.setattr(events, "_BYPASSES_PER_SCHEDULER", 0)
    (line,) = kernel_events.trouble()
    assert line.startswith("SCX_EV_BYPASS_ACTIVATE: 1 times, of which 0 are in order; the last by ")
    kernel_events.expect(events.BYPASS)
    assert not kernel_events.trouble()


def test_watched_events_have_the_kernels_names(enclave: MakeEnclave) -> None:
    enclave("1")
    names = {line.split()[0] for line in Path("/sys/kernel/sched_ext/root/events").read_text().splitlines()}
    assert {"SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE", events.BYPASS} <= names
    # A kernel has either all of these events or not yet any; a renamed event would escape the check.
    assert not {name for name in names if "REPEAT" in name or "NOT_OWNED" in name} - set(events.RECORDED)


@pytest.mark.kernel_independent
def test_agent_that_is_refused_in_a_loop_is_reported(workload: Workload, agent: MakeAgent, refusals: Refusals) -> None:
    one = agent("1")
    task = task_of(one, workload.spinner(one.enclave))
    manual(one)
    stale = Task(task.gtid)
    stale.word, stale.seq = task.word, task.seq - 1
    end = time.monotonic() + 3 * refused.WINDOW_S
    while time.monotonic() < end:
        assert one.commit([Transaction(stale, 1)]) == [TxnState.STALE]
        time.sleep(0.001)
    (line,) = refusals.report()
    assert line.startswith(f"agent {os.getpid()} of enclave {one.enclave.id} (manual): ")
    assert not refusals.report()


@pytest.mark.kernel_independent
def test_task_that_stays_in_the_class_is_found(workload: Workload) -> None:
    child = workload.sleeper()
    assert not ext_tasks()
    os.sched_setscheduler(child.pid, SCHED_EXT, os.sched_param(0))
    assert list(ext_tasks()) == [child.pid]
    os.kill(child.pid, 9)
    until(lambda: not ext_tasks(), "an ended task does not count")
