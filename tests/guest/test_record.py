# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf record`` beside Biff and an agent: what happened is in the file, and explain and compare read it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import MakeAgentProcess
from command import Running, ghostbpf, running
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.tools.record.events import COMPLETE, Enclave, Message, Transaction
from ghostbpf.tools.record.reader import Recording, read
from ghostbpf.tools.record.timeline import Timeline
from workload import MakeEnclave, Workload

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]


@contextlib.contextmanager
def recording(*options: object) -> Iterator[Running]:
    """A running recorder; it must end with status 0 on SIGTERM, with nothing dropped."""
    with running("record", *options) as process:
        process.until(lambda: "Ctrl-C" in process.err)
        yield process
        process.signal(signal.SIGTERM)
        done = process.wait()
    assert (done.status, done.out) == (0, "")
    assert "warning" not in done.err
    assert "were dropped" not in done.err


def of(found: Recording, kind: type, tid: int) -> list[object]:
    return [event for event in found.events if isinstance(event, kind) and getattr(event, "tid", None) == tid]


@pytest.mark.soak
def test_biff_and_its_tasks_are_in_the_recording(workload: Workload, enclave: MakeEnclave, tmp_path: Path) -> None:
    e = enclave("1", "biff")
    file = tmp_path / "trace"
    children = [workload.spinner(e) for _ in range(3)]
    with recording("-o", file):
        for child in children:
            child.progress(3)
    found = read(file)
    assert not found.cut_off
    assert found.release == os.uname().release
    assert ("biff", CpuSet.parse("1").bits) in [
        (one.policy, one.cpus) for one in found.events if isinstance(one, Enclave)
    ]
    timeline = Timeline(found.events)
    for child in children:
        task = timeline.tasks[child.pid]
        assert {run.cpu for run in task.runs} == {1}
        assert any(wait.queued.ext and wait.queued.enclave == e.id for wait in task.waits)
    told = ghostbpf("explain", file, "--task", children[0].pid, "--json")
    assert told.status == 0, told.err
    *waits, summary = map(json.loads, told.out.splitlines())
    assert summary["decided_by"]["policy"] > 0
    others = {child.pid for child in children[1:]}
    longest = max(waits, key=lambda wait: wait["ns"])
    assert longest["allowed"] == "1"
    assert others & {culprit["tid"] for culprit in longest["culprits"]}
    assert "biff" in longest["decision"]


def test_messages_and_transactions_of_an_agent_are_in_the_recording(
    workload: Workload, agent_process: MakeAgentProcess, tmp_path: Path
) -> None:
    e, agent = agent_process("1-2", "fifo_centralized", fastpath="off")
    file = tmp_path / "trace"
    children = [workload.sleeper(e) for _ in range(2)]
    with recording("-o", file):
        for child in children:
            for _ in range(5):
                child.wake()
                child.asleep()
    found = read(file)
    kinds = Counter(one.kind for one in found.events if isinstance(one, Message) and one.enclave == e.id)
    assert kinds[constant("MSG_TASK_WAKEUP")] > 0
    assert kinds[constant("MSG_TASK_BLOCKED")] > 0
    decisions = [one for one in found.events if isinstance(one, Transaction) and one.agent == agent.pid]
    timeline = Timeline(found.events)
    for child in children:
        complete = [one for one in decisions if one.tid == child.pid and one.state == COMPLETE]
        assert complete
        assert all((one.gtid, one.seq) in timeline.messages for one in complete)
        decided = [wait for wait in timeline.tasks[child.pid].waits if wait.decision]
        assert decided
        assert all(wait.since <= wait.decision.at <= wait.until for wait in decided if wait.decision)
    told = ghostbpf("explain", file, "--task", children[0].pid)
    assert told.status == 0, told.err
    assert f"({agent.pid}), on message TASK_" in told.out
