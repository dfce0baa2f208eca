# SPDX-License-Identifier: Apache-2.0
"""Statistics of waits, turns and queues: what the core counts is what the kernel and the policy's slice say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import ghostbpf
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.stats import Stats
from workload import Child, MakeEnclave, Workload, until

pytestmark = pytest.mark.usefixtures("quiet")


def stats(enclave: Enclave) -> Stats:
    found = enclave.stats()
    assert found is not None
    return found


def waited_s(children: list[Child]) -> float:
    """How long they have waited for a CPU, as the kernel accounts it."""
    return sum(int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[1]) for child in children) / 1e9


@pytest.mark.shared_core
def test_waits_are_those_that_the_kernel_accounts(workload: Workload, enclave: MakeEnclave) -> None:
    rr = enclave("1", "rr", slice="8ms")
    spinners = [workload.spinner(rr) for _ in range(3)]
    for spinner in spinners:
        spinner.progress()

    def read() -> tuple[float, Stats, float]:
        """The statistics, with the kernel's account before and after them: meanwhile, this CPU may stop."""
        return waited_s(spinners), stats(rr), waited_s(spinners)

    first = read()
    until(lambda: (stats(rr) - first[1]).slice_ends >= 60, "60 slices")
    last = read()
    found, least, most = last[1] - first[1], last[0] - first[2], last[2] - first[0]
    # A wait is counted when it ends: of each spinner, one may be counted of which only a part was in this time.
    longest = 2 * 8e-3 * len(spinners)
    assert min(0.9 * least, least - 2 * longest) <= found.preempted_wait.sum <= max(1.1 * most, most + 2 * longest)
    assert found.preempted_wait.count == pytest.approx(found.slice_ends + found.class_preemptions, abs=len(spinners))
    # A slice ends at a tick, so it is longer than set. Two others wait all the time.
    assert 4e-3 < found.turn.percentile(0.5) < 33e-3
    assert found.depth.percentile(0.5) > 1
    assert found.work_conservation == 1
    spinners[0].stop()


@pytest.mark.shared_core
def test_wakeups_on_an_idle_cpu_wait_while_it_idles(workload: Workload, enclave: MakeEnclave) -> None:
    biff = enclave("2", "biff")
    sleeper = workload.sleeper(biff)
    sleeper.asleep()
    before = stats(biff)
    for _ in range(20):
        sleeper.wake()
        sleeper.asleep()
    found = stats(biff) - before
    assert found.wakeup_wait.count == pytest.approx(20, abs=3)
    assert 0 < found.idle_wait_ns <= found.wakeup_wait.sum * 1e9 + found.preempted_wait.sum * 1e9 + 1


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_core_without_statistics_says_so() -> None:
    show = "ghostbpf enclave show 1 --stats"
    done = ghostbpf("run", "biff", "--cpus", "1", "--stats", "off", "--", "sh", "-c", f"{show} && {show} --json")
    assert done.status == 0
    *text, document = done.out.splitlines()
    assert "the core keeps no statistics" in text
    assert json.loads(document)["stats"] is None
