# SPDX-License-Identifier: Apache-2.0
"""The policy that ``ghostbpf new`` writes schedules real tasks unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import ghostbpf
from ghostbpf.schedulers.enclave import Enclaves
from policy_file import scheduled, wake
from workload import Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The file of a new policy."""
    done = ghostbpf("new", "brand_new", "--dir", tmp_path)
    assert done.status == 0
    # In a guest, ghostbpf is not beside its Python.
    assert f"  sudo ghostbpf run {tmp_path}/brand_new/brand_new.py" in done.out
    return tmp_path / "brand_new" / "brand_new.py"


def test_new_policy_shares_cpus_among_tasks_that_never_block(policy: Path, workload: Workload) -> None:
    with scheduled(policy, "1-2") as run:
        assert run.enclave.policy == "brand_new"
        children = [workload.spinner(run.enclave) for _ in range(5)]
        for child in children:
            child.progress(1000)
            assert in_ext(child.pid)
            assert child.cpus_seen <= run.enclave.cpus
        committed = run.agent.committed
        until(lambda: run.agent.committed > committed + 50, "the agent decides")
        for child in children:
            child.progress(1000)
            child.stop()


def test_new_policy_runs_tasks_that_wake(policy: Path, workload: Workload) -> None:
    with scheduled(policy, "1-2", "--fastpath", "off") as run:
        busy = [workload.spinner(run.enclave) for _ in range(3)]
        sleepers = [workload.sleeper(run.enclave) for _ in range(5)]
        for child in sleepers:
            wake(child)
        for child in (*busy, *sleepers[:2]):
            child.kill()
        assert run.agent.committed > len(busy) + len(sleepers)


def test_new_policy_runs_a_command_and_gives_its_status(policy: Path) -> None:
    done = ghostbpf("run", policy, "--cpus", "1-3", "--slice", "2ms", "--", "sh", "-c", "true | true; exit 3")
    assert (done.status, done.out, done.err) == (3, "", "")
    assert Enclaves.open() is None
