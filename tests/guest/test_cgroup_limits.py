# SPDX-License-Identifier: Apache-2.0
"""cpu.max of cgroups in enclaves. The kernel's own count of CPU time (cpu.stat) is the measure."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import ghostbpf
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers import cgroup_usage, limits
from ghostbpf.schedulers.cgroup_usage import CgroupUsage
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from workload import Child, MakeEnclave, Me, Workload, runtime_ns, state, until

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.shared_core,
    pytest.mark.skipif(not limits.are_applied(), reason="the kernel has no cpu.max"),
]

MS = 1000  # in microseconds

#: How late a limit may take effect: some ticks, each of which a busy host may delay.
LATE = 60 * MS


def limit(cgroup: Path, quota: int | str, period: int = 100 * MS) -> None:
    (cgroup / "cpu.max").write_text(f"{quota} {period}")


def enter(cgroup: Path, *children: Child) -> None:
    for child in children:
        (cgroup / "cgroup.procs").write_text(str(child.pid))


def used(cgroup: Path) -> int:
    """The CPU time of the cgroup, in microseconds."""
    return int((cgroup / "cpu.stat").read_text().split()[1])


def usage(enclave: Enclave, cgroup: Path) -> CgroupUsage | None:
    return next((u for u in cgroup_usage.of_enclave(enclave) if u.cgroup.endswith("/" + cgroup.name)), None)


def known(enclave: Enclave) -> set[str]:
    """The inode numbers of the limited cgroups that the core knows, with tasks or without."""
    return {usage.cgroup for usage in cgroup_usage.every(enclave.core)}


def is_throttled(enclave: Enclave, cgroup: Path) -> bool:
    found = usage(enclave, cgroup)
    return found is not None and found.throttled


def expect_quota(enclave: Enclave, limited: Path, measured: Path, quota: int, periods: int = 8) -> None:
    """In periods of 100 ms, ``measured`` uses no more than ``quota`` in each; in ``limited``, that is the least.

    A virtual CPU that stops charges the time to the task that runs: the cgroup pays for it in the next periods.
    """
    until(lambda: usage(enclave, limited) is not None, "the limit is known")
    before, since, first = used(measured), time.monotonic(), usage(enclave, limited).nr_throttled

    def throttled() -> int:
        return usage(enclave, limited).nr_throttled - first

    def is_within_quota() -> bool:
        return used(measured) - before <= ((time.monotonic() - since) * 10 + 1) * quota + LATE

    until(lambda: throttled() >= periods, "it is throttled each period")
    until(is_within_quota, f"{measured} uses its quota and no more")
    # The periods in which it was throttled were used up, but for what it owed at the start: that matters less and less.
    until(lambda: used(measured) - before >= 0.75 * throttled() * quota - LATE, f"{measured} uses all of its quota")


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("biff", marks=pytest.mark.kernel_independent),
        pytest.param("cfs_bpf", marks=pytest.mark.soak),
        pytest.param("fifo_centralized", marks=pytest.mark.kernel_independent(on="oldest")),
    ],
)
def test_cgroup_gets_its_quota_and_changes_take_effect_at_once(
    workload: Workload, governed: MakeEnclave, cgroup: Path, policy: str
) -> None:
    inside, free = [workload.spinner(cpus=[1, 2], start=False) for _ in range(2)], workload.spinner(start=False)
    enter(cgroup / "below", *inside)
    limit(cgroup, 20 * MS)
    made = governed("1-3", policy)
    for child in (*inside, free):
        made.add(child.pid)
        child.wake()
    # The nearest limit is above the cgroup of the tasks.
    expect_quota(made, cgroup, cgroup, 20 * MS)
    assert usage(made, cgroup / "below") is None
    # With a limit of its own, the least one holds, and both are charged.
    limit(cgroup / "below", 10 * MS)
    expect_quota(made, cgroup / "below", cgroup, 10 * MS)
    limit(cgroup / "below", "max")
    limit(cgroup, "max")
    ran = used(cgroup)
    until(lambda: used(cgroup) - ran > 500 * MS, "it runs without a limit")
    until(lambda: not made._record.bank & constant("LIMITED"), "the enclave has no limits any more")
    free.progress()
    assert sched_ext.status().state == "enabled"


def yields(me: Me) -> None:
    """Run for less than the core's SETTLE_PERIOD at a time."""
    while not me.stopped:
        me.note()
        os.sched_yield()


@pytest.mark.kernel_independent
def test_tasks_that_run_briefly_at_a_time_use_no_more_than_their_quota(
    workload: Workload, governed: MakeEnclave, cgroup: Path
) -> None:
    limit(cgroup, 20 * MS)
    made = governed("1-2")
    inside, free = [workload.spawn(yields, made) for _ in range(3)], workload.spawn(yields, made)
    enter(cgroup / "below", *inside)
    expect_quota(made, cgroup, cgroup, 20 * MS, periods=4)
    free.progress()


def test_released_task_wakes_the_only_cpu_that_it_may_use(
    workload: Workload, governed: MakeEnclave, cgroup: Path
) -> None:
    # A period takes 0.1 s, and took 3 s when another CPU was woken: 30 of these are longer than until() waits.
    below, quota, periods = cgroup / "below", 20 * MS, 30
    limit(below, quota)
    made = governed("1-3")
    enter(below, workload.spinner(made, cpus=[3]))
    until(lambda: is_throttled(made, below), "throttled")
    ran = used(below)
    until(lambda: used(below) - ran >= periods * quota, "it uses its quota")


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["biff", "fifo_centralized"])
def test_throttled_tasks_that_move_or_are_killed_need_not_wait(
    workload: Workload, governed: MakeEnclave, cgroup: Path, policy: str
) -> None:
    below, other = cgroup / "below", cgroup / "other"
    other.mkdir()
    made = governed("1-2", policy)
    mover, killed, removed, freed = (workload.spinner(made) for _ in range(4))
    enter(below, mover, killed, removed, freed)
    limit(below, MS, 1000 * MS)
    until(lambda: is_throttled(made, below), "throttled")
    (shown,) = json.loads(ghostbpf("enclave", "show", made.id, "--cgroups", "--json").out)["cgroups"]
    assert (shown["cgroup"], shown["quota_usec"]) == ("/ghostbpf-test/below", MS)
    # In each period, 1 ms of what was used in advance is made up for.
    assert 0 < shown["wait_usec"] <= (1 - shown["left_usec"] // MS) * 1000 * MS
    assert "1/1000" in ghostbpf("enclave", "show", made.id, "--cgroups").out
    until(lambda: not any(task.on_cpu for task in made.tasks()), "all wait")

    def runs(child: Child) -> Callable[[], bool]:
        before = runtime_ns(child.pid)
        return lambda: runtime_ns(child.pid) - before > 50 * MS * 1000

    enter(other, mover)
    until(runs(mover), "it runs in a cgroup without a limit")
    made.remove_process(removed.pid)
    assert state(removed.pid) == "R"
    killed.kill()
    assert ghostbpf("enclave", "limits", made.id, "off").out == f"enclave {made.id}: cgroup limits off\n"
    until(runs(freed), "it runs without limits")


def test_throttled_cgroup_can_be_removed(workload: Workload, governed: MakeEnclave, cgroup: Path) -> None:
    below = cgroup / "below"
    limit(below, MS, 1000 * MS)
    made = governed("1-2")
    children = [workload.spinner(made) for _ in range(2)]
    enter(below, *children)
    until(lambda: is_throttled(made, below), "throttled")
    inode = str(below.stat().st_ino)
    assert inode in known(made)
    for child in children:
        child.kill()
    below.rmdir()
    until(lambda: inode not in known(made), "the core forgets it")


@pytest.mark.kernel_independent
def test_unused_quota_is_kept_for_a_burst(workload: Workload, governed: MakeEnclave, cgroup: Path) -> None:
    below = cgroup / "below"
    limit(below, 20 * MS)
    (below / "cpu.max.burst").write_text(f"{20 * MS}")
    made = governed("1-2")
    child = workload.spinner(made)
    enter(below, child)
    until(lambda: is_throttled(made, below), "throttled")
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state(child.pid) == "T", "it has stopped")
    before = usage(made, below).nr_bursts
    idle_until = time.monotonic() + 0.5
    until(lambda: time.monotonic() > idle_until, "periods have passed in which it used nothing")
    os.kill(child.pid, signal.SIGCONT)
    until(lambda: usage(made, below).nr_bursts > before, "it uses more than its quota in a period")
    assert usage(made, below).burst_usec == 20 * MS


@pytest.mark.own_core
@pytest.mark.soak
def test_limits_hold_in_full_mode(workload: Workload, cgroup: Path) -> None:
    limit(cgroup / "below", 10 * MS)
    enter(cgroup / "below", workload.spinner(), workload.spinner())
    with Enclaves.temporary(POLICIES["biff"], full=True) as every:
        expect_quota(every, cgroup / "below", cgroup, 10 * MS, periods=4)


@pytest.mark.kernel_independent
def test_run_with_cgroup_limits_off_ignores_cpu_max(cgroup: Path) -> None:
    limit(cgroup, 2 * MS)
    spin = """import time
began, used = time.monotonic(), time.process_time()
while time.process_time() - used < 0.4: pass
print(time.monotonic() - began)"""
    # Only the command: the kernel would apply the limit to ghostbpf itself.
    script = f"echo 0 > {cgroup}/cgroup.procs && exec python3 -c '{spin}'"
    ran = used(cgroup)
    run = ghostbpf("run", "biff", "--cpus", "1-2", "--cgroup-limits", "off", "--", "sh", "-c", script)
    assert (run.status, used(cgroup) - ran > 400 * MS) == (0, True)
    assert 0.4 / float(run.out) > 3 * 0.02, "part of a CPU; the limit is 0.02"


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["biff", "fifo_centralized"])
def test_tasks_throttled_longer_than_the_watchdog_allows_eject_no_core(
    workload: Workload, governed: MakeEnclave, cgroup: Path, policy: str
) -> None:
    limit(cgroup / "below", MS, 1000 * MS)
    made = governed("1-2", policy)
    children = [workload.spinner(made) for _ in range(20)]
    enter(cgroup / "below", *children)
    end = time.monotonic() + 75
    until(lambda: time.monotonic() > end or sched_ext.status().state != "enabled", "75 s", seconds=90)
    assert sched_ext.status().state == "enabled"
    # In turn: each has run again since it was first throttled.
    assert usage(made, cgroup / "below").usage_usec < 76 * MS + 2 * LATE
