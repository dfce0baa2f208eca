# SPDX-License-Identifier: Apache-2.0
"""The hybrid example: BPF and the agent each assign tasks, and the counters of each tune the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ghostbpf.schedulers.agents.kernel import params_of
from ghostbpf.schedulers.registry import from_file
from policy_file import scheduled, wake
from workload import Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent]

HYBRID = Path(__file__).parents[2] / "examples" / "hybrid.py"


@pytest.mark.soak
def test_hybrid_tunes_bpf_by_what_bpf_counts(workload: Workload) -> None:
    with scheduled(HYBRID, "1-2", "--shortest", "20ms", "--longest", "200ms", "--verbose", "yes") as run:
        _, params = params_of(run.enclave, from_file(str(HYBRID)))
        sleeper = workload.sleeper(run.enclave)
        before = run.enclave.counters().idle
        wake(sleeper, 20)
        assert run.enclave.counters().idle >= before + 15, "BPF runs it on an idle CPU"
        until(lambda: params.slice_ns == 0, "the slice is endless while no task waits")

        hogs = [workload.spinner(run.enclave) for _ in range(4)]
        until(lambda: params.slice_ns == 20_000_000, "the slice is the shortest while every wakeup waits")
        committed = run.agent.committed
        for hog in hogs:
            hog.progress(1000)
        until(lambda: run.agent.committed > committed + 20, "the agent decides")
        for hog in hogs:
            hog.stop()

        pair = [workload.spinner(run.enclave, cpus=[1]) for _ in range(2)]

        def is_between() -> bool:
            wake(sleeper, 5)
            return 20_000_000 < params.slice_ns < 200_000_000

        until(is_between, "the slice grows while BPF runs some wakeups")
        pair[0].stop()
        until(lambda: params.slice_ns == 0, "the slice is endless again")
        before = run.enclave.counters().idle
        wake(sleeper, 20)
        assert run.enclave.counters().idle >= before + 15, "BPF runs it on an idle CPU again"
        told = re.findall(
            r"^hybrid: (\d+) placed by BPF, (\d+) had to wait: slice (.*)$", run.process.err, re.MULTILINE
        )
        assert {"20.0 ms", "endless"} < {slice for _, _, slice in told}
        assert any(int(placed) and int(asked) for placed, asked, _ in told)


@pytest.mark.soak
def test_hybrid_ends_an_endless_slice_when_another_task_waits(workload: Workload) -> None:
    with scheduled(HYBRID, "1") as run:
        first = workload.spinner(run.enclave)
        first.progress(1000)
        second = workload.spinner(run.enclave)
        second.progress(1000)
        first.progress(1000)
        second.progress(1000)
