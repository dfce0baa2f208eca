# SPDX-License-Identifier: Apache-2.0
"""Policies that weigh cgroups: shares by cpu.weight, as cpu.stat counts the CPU time, whatever changes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from agents import MakeAgentProcess
from shares import renice, stopwatch
from workload import Child, MakeEnclave, Me, Workload, until

pytestmark = pytest.mark.usefixtures("quiet")

MakeGroup = Callable[..., Path]


@pytest.fixture
def group(cgroup: Path) -> MakeGroup:
    """``group("a", 400, *children)`` makes a cgroup of this weight with these children."""

    def make(name: str, weight: int, *children: Child) -> Path:
        path = cgroup / name
        path.mkdir()
        (path / "cpu.weight").write_text(f"{weight}")
        for child in children:
            move(child, path)
        return path

    return make


def move(child: Child, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(f"{child.pid}")


def used_us(cgroup: Path) -> int:
    """The CPU time of a cgroup."""
    return int((cgroup / "cpu.stat").read_text().split()[1])


def expect_shares(groups: Sequence[Path], weights: Sequence[float], seconds: float) -> None:
    """Let ``groups`` run for ``seconds`` in total: the shares are those of ``weights``, each within a tenth.

    A virtual CPU that stops charges the time to the task that runs. A fair scheduler makes up for that, so the shares
    converge.
    """
    before = [used_us(group) for group in groups]
    expected = [weight / sum(weights) for weight in weights]

    def ran() -> list[int]:
        return [used_us(group) - used for group, used in zip(groups, before, strict=True)]

    def shares() -> list[float]:
        return [one / max(sum(now), 1) for now in [ran()] for one in now]

    until(lambda: sum(ran()) > seconds * 1e6, f"{seconds} s of run time")
    print("shares", ", ".join(f"{share:.2%}" for share in shares()), "of", weights)
    until(lambda: shares() == pytest.approx(expected, rel=0.1), f"shares by {weights}")


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("cfs_bpf", marks=pytest.mark.kernel_independent(on="oldest")),
        pytest.param("cfs", marks=pytest.mark.soak),
    ],
)
def test_cgroups_share_a_cpu_by_their_weights_whatever_the_number_of_their_tasks(
    workload: Workload, governed: MakeEnclave, group: MakeGroup, policy: str
) -> None:
    made = governed("1", policy)
    groups = [
        group(f"weight-{weight}", weight, *(workload.spinner(made) for _ in range(number)))
        for weight, number in ((100, 3), (300, 1))
    ]
    expect_shares(groups, (1, 3), 1)
    (groups[0] / "cpu.weight").write_text("900")
    expect_shares(groups, (3, 1), 1)


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["cfs_bpf", "cfs"])
def test_weights_of_1_to_16_and_of_cgroups_below_others(
    workload: Workload, governed: MakeEnclave, group: MakeGroup, policy: str
) -> None:
    """A cgroup below one of weight 400 has 4 times its own weight."""
    made = governed("1", policy)
    groups = [group(f"{weight}", weight, *(workload.spinner(made) for _ in range(2))) for weight in (50, 800)]
    top, child = group("top", 400), workload.spinner(made)
    (top / "cgroup.subtree_control").write_text("+cpu")
    below = group("top/below", 50, child)
    expect_shares([groups[0], below, groups[1]], (1, 4, 16), 4)
    child.stop()
    below.rmdir()


@pytest.mark.soak
def test_task_that_moves_to_another_cgroup_has_the_share_of_that_one(
    workload: Workload, governed: MakeEnclave, group: MakeGroup
) -> None:
    made = governed("1", "cfs")
    children = [workload.spinner(made) for _ in range(4)]
    one, other = group("one", 300, children[0]), group("other", 100, *children[1:])
    expect_shares([one, other], (3, 1), 1)
    for turn in range(8):
        move(children[turn % 4], (one, other)[turn // 4])
        for child in children:
            child.progress()
    assert (one / "cgroup.procs").read_text() == ""
    move(children[0], one)
    expect_shares([one, other], (3, 1), 1)


@pytest.mark.soak
def test_idle_cgroup_gets_what_little_its_weight_of_3_in_1024_gives(
    workload: Workload, governed: MakeEnclave, group: MakeGroup
) -> None:
    made = governed("1", "cfs")
    busy, idle = (group(name, 100, workload.spinner(made)) for name in ("busy", "idle"))
    expect_shares([busy, idle], (1, 1), 1)
    (idle / "cpu.idle").write_text("1")
    before = used_us(idle), used_us(busy)
    until(lambda: used_us(busy) - before[1] > 4_000_000, "4 s of run time")
    until(lambda: used_us(idle) - before[0] < 0.05 * (used_us(busy) - before[1]), "less than 5 %", 60)
    until(lambda: used_us(idle) > before[0], "but it runs")


@pytest.mark.soak
def test_nice_values_count_within_a_cgroup(workload: Workload, governed: MakeEnclave, group: MakeGroup) -> None:
    made = governed("1", "cfs")
    children = [workload.spinner(made) for _ in range(3)]
    renice(children[0], 5)
    groups = group("two", 100, *children[:2]), group("one", 200, children[2])
    expect_shares(groups, (1, 2), 1)
    ran = stopwatch(children)
    until(lambda: sum(ran()) > 3e9, "3 s of run time")
    print("shares", [ns / sum(ran()) for ns in ran()])
    until(lambda: ran()[0] / sum(ran()[:2]) == pytest.approx(0.25, rel=0.15), "a quarter for nice 5 beside nice 0")


@pytest.mark.soak
def test_weights_hold_after_agents_are_replaced_and_after_another_policy(
    workload: Workload, agent_process: MakeAgentProcess, group: MakeGroup
) -> None:
    made, _ = agent_process("1", "fifo_centralized", fastpath="off")
    groups = [
        group(f"weight-{weight}", weight, *(workload.spinner(made) for _ in range(number)))
        for weight, number in ((100, 2), (300, 1))
    ]
    for _ in range(2):
        _, agents = agent_process(made, "cfs")
        expect_shares(groups, (1, 3), 1)
        assert agents.check()


@pytest.mark.soak
def test_cgroup_of_children_that_end_one_after_another_gets_its_share(
    workload: Workload, governed: MakeEnclave, group: MakeGroup
) -> None:
    """And so do those that come and go."""

    def forks(me: Me) -> None:
        while not me.stopped:
            if not (pid := os.fork()):
                me.spin(3)
                os._exit(0)
            os.waitpid(pid, 0)

    made = governed("1", "cfs")
    busy = group("busy", 100, workload.spinner(made))
    for number in range(5):
        forking = group(f"forking-{number}", 100, child := workload.spawn(forks, made))
        expect_shares([busy, forking], (1, 1), 1)
        child.stop()
