# SPDX-License-Identifier: Apache-2.0
"""What the core's records say of tasks is what the kernel's files in /proc say."""

from __future__ import annotations

from pathlib import Path

import pytest
from ghostbpf.schedulers import snapshot
from ghostbpf.schedulers.core import Activity
from workload import MakeEnclave, Workload, sched_field, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


def activity(tid: int) -> Activity:
    (found,) = (task.activity for task in snapshot.take(tasks=True).tasks if task.tid == tid)
    return found


def schedstat(tid: int) -> list[int]:
    """Run time and wait in ns, and number of runs, as /proc has them."""
    return [int(word) for word in Path(f"/proc/{tid}/schedstat").read_text().split()]


def test_records_of_tasks_are_those_of_the_kernel(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1")
    spinners = [workload.spinner(e) for _ in range(3)]
    sleeper = workload.sleeper(e)
    for child in spinners:
        child.progress(3)
    for child in spinners:
        before, moved = schedstat(child.pid), sched_field(child.pid, "se.nr_migrations")
        found = activity(child.pid)
        after = schedstat(child.pid)
        assert before[2] <= found.runs <= after[2]
        assert 0 < before[1] <= found.waited_ns <= after[1]
        assert moved <= found.migrations <= sched_field(child.pid, "se.nr_migrations")
        assert found.state in ("running", "waiting")
        assert (found.waiting_ns > 0) == (found.state == "waiting")
    slept = activity(sleeper.pid)
    assert (slept.state, slept.waiting_ns, slept.queue) == ("sleeping", 0, 0)
    until(lambda: sum(activity(child.pid).queue != 0 for child in spinners) == 2, "two of three wait on a queue")
