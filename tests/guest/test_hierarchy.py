# SPDX-License-Identifier: Apache-2.0
"""Trees of policies: arbiters give CPUs to the leaves that want them, and take them back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_policies import bad_policy
from command import fork
from ghostbpf.schedulers import hierarchy, trees
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.hierarchy import TreeConfig
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from policy_file import wake
from shares import MS, stopwatch
from workload import Child, Workload, in_ext, offline, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

MakeTree = Callable[[str], Enclave]


def config(directory: Path, text: str) -> TreeConfig:
    file = directory / "tree.toml"
    file.write_text(text)
    return hierarchy.read(str(file), POLICIES)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[MakeTree]:
    """``tree(text)``: the tree that the text of a configuration names."""
    roots: list[Enclave] = []

    def make(text: str) -> Enclave:
        with Enclaves.create() as enclaves:
            roots.append(trees.create(enclaves, config(tmp_path, text)))
        return roots[-1]

    yield make
    with Enclaves.change() as enclaves:
        for root in roots if enclaves is not None else ():
            if root in enclaves:
                root.destroy()


def leaves_of(root: Enclave) -> list[Enclave]:
    return [Enclaves.find(leaf.enclave) for leaf in trees.leaves(root)]


CO_LOCATION = """
arbiter = "roci"
cpus = "1-3"
[[child]]
name = "latency"
policy = "biff"
[[child]]
name = "batch"
policy = "rr"
[[child]]
policy = "idle"
"""


PROV = """
arbiter = "prov"
cpus = "1-3"
[[child]]
policy = "biff"
weight = 200
[[child]]
policy = "rr"
max-cpus = 2
"""


PRIORITY = CO_LOCATION.replace('policy = "biff"', 'policy = "biff"\npriority-cpus = "3"')
HELD = CO_LOCATION.replace('policy = "biff"', 'policy = "biff"\npoke-threshold = "10s"')


def swap(leaf: Enclave, policy: Policy) -> None:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(leaf.id).set_policy(policy)


def expect_share(ours: list[Child], others: list[Child], least: float, most: float) -> None:
    """Let the children run for 3 s in total: the share of ``ours`` is between ``least`` and ``most``.

    A virtual CPU that stops charges the time to the task that runs: the share may be off then, but it converges.
    """
    clock, all_clocks = stopwatch(ours), stopwatch([*ours, *others])
    until(lambda: sum(all_clocks()) > 3000 * MS, "3 s of run time")

    def share() -> float:
        return sum(clock()) / sum(all_clocks())

    print(f"{share():.3f} of the time; expected: {least} to {most}")
    until(lambda: least < share() < most, "the share")


@pytest.mark.kernel_independent(on="oldest")
def test_latency_leaf_gets_cpus_at_once_and_batch_the_rest(workload: Workload, tree: MakeTree) -> None:
    root = tree(CO_LOCATION)
    latency, batch = leaves_of(root)
    all_of_them = CpuSet([1, 2, 3])
    assert (root.cpus, latency.cpus, root.granted, latency.granted) == (*[all_of_them] * 3, CpuSet())

    # The batch leaf alone uses every CPU.
    hogs = [workload.spinner(batch) for _ in range(4)]
    until(lambda: {hog.at for hog in hogs} == set(all_of_them), "the batch leaf uses all CPUs")
    assert batch.granted == all_of_them
    until(lambda: trees.leaves(root)[1].demand == 4, "each task counts once")

    # Each wakeup of the latency leaf takes a CPU, which goes back when the task sleeps.
    server = workload.sleeper(latency)
    before = trees.leaves(root)
    wake(server, times=20)
    server.asleep()
    after = trees.leaves(root)
    # Now and then a CPU idles at that moment, since a task of no enclave has just left it.
    assert after[0].preemptions - before[0].preemptions > 10, (before, after)
    assert after[1].grants - before[1].grants > 10
    until(lambda: batch.granted == all_of_them, "batch has all CPUs again")

    # One CPU's worth of work for the latency leaf, then three.
    busy = [workload.spinner(latency)]
    expect_share(busy, hogs, 0.28, 0.38)
    busy += [workload.spinner(latency) for _ in range(2)]
    until(lambda: latency.granted == all_of_them or trees.leaves(root)[1].turns, "the latency leaf has every CPU")
    turns = trees.leaves(root)[1].turns
    expect_share(busy, hogs, 0.9, 1)
    until(lambda: trees.leaves(root)[1].turns > turns, "a leaf that starves gets turns")
    assert batch.fallback is latency.fallback is None


@pytest.mark.kernel_independent
def test_leaves_change_policies_and_leave_with_their_tree(workload: Workload, tree: MakeTree) -> None:
    root = tree(CO_LOCATION)
    latency, batch = leaves_of(root)
    children = [workload.spinner(latency), *(workload.spinner(batch) for _ in range(3))]
    server = workload.sleeper(latency)
    for leaf, policy in ((latency, "cfs_bpf"), (batch, "biff"), (latency, "rr")):
        swap(leaf, POLICIES[policy])
        for child in children:
            child.progress()
        wake(server)
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        root.destroy()
        assert not {root.id, latency.id, batch.id} & set(enclaves.ids())
    for child in children:
        child.progress()
        assert not in_ext(child.pid)
    wake(server)


@pytest.mark.soak
@pytest.mark.kernel_independent
@pytest.mark.parametrize("kind", ["drops", "misplaces"])
def test_leaf_whose_policy_loses_tasks_falls_back_and_shares_on(
    workload: Workload, tree: MakeTree, tmp_path: Path, kind: str
) -> None:
    latency, batch = leaves_of(tree(CO_LOCATION))
    hogs = [workload.spinner(batch) for _ in range(4)]
    server = workload.sleeper(latency).asleep()
    latency.set_runnable_timeout(10**9)
    swap(latency, bad_policy(tmp_path, kind))
    server.wake()
    until(lambda: latency.fallback, "the FIFO replaces the leaf's policy")
    until(lambda: server.loops == 1, "the lost task runs")
    wake(server, times=5)
    for hog in hogs:
        hog.progress()
    assert batch.fallback is None


@pytest.mark.kernel_independent(on="oldest")
def test_cpu_of_a_tree_goes_offline_and_comes_back(workload: Workload, tree: MakeTree) -> None:
    root = tree(CO_LOCATION)
    latency, batch = leaves_of(root)
    children = [workload.spinner(latency), *(workload.spinner(batch) for _ in range(3))]
    bound = workload.spinner(latency, cpus=[2])
    server = workload.sleeper(latency)
    for child in (*children, bound):
        child.progress()
    with offline(2):
        for child in (*children, bound):
            child.forget()
            child.progress(20)
            assert 2 not in child.cpus_seen
        wake(server, times=5)
    until(lambda: 2 in latency.granted | batch.granted, "the CPU is used again")
    with contextlib.ExitStack() as away:
        for cpu in (1, 2, 3):
            away.enter_context(offline(cpu))
        for child in children:
            child.progress()
        wake(server)
    for child in children:
        until(lambda child=child: child.at in root.cpus, f"{child} is back")
    wake(server, times=5)


@pytest.mark.kernel_independent
def test_next_command_removes_a_tree_that_a_killed_loader_left_incomplete(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make() -> None:
        monkeypatch.setattr(Enclave, "set_reach", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with Enclaves.create() as enclaves:
            trees.create(enclaves, config(tmp_path, CO_LOCATION))

    assert fork(make).wait().status == 137
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        assert [one for one in enclaves if one.tree] == []
        assert enclaves.free_cpus() == CpuSet([1, 2, 3])


@pytest.mark.kernel_independent
def test_prov_gives_cpus_by_weight_and_leaves_none_idle(workload: Workload, tree: MakeTree) -> None:
    heavy, light = leaves_of(root := tree(PROV))
    many = [workload.spinner(light) for _ in range(3)]
    until(lambda: len(light.granted) == 2, "the limit holds")
    assert len(root.granted) == 1
    more = [workload.spinner(heavy) for _ in range(3)]
    until(lambda: (len(heavy.granted), len(light.granted)) == (2, 1), "two CPUs to one")
    expect_share(more, many, 0.6, 0.73)
    for child in more:
        child.kill()
    until(lambda: (len(root.granted), len(light.granted)) == (1, 2), "what one leaves, the other gets")


@pytest.mark.soak
def test_task_that_its_own_leaf_lets_starve_gets_turns(workload: Workload, tree: MakeTree, tmp_path: Path) -> None:
    latency, batch = leaves_of(tree(CO_LOCATION.replace("1-3", "1")))
    swap(latency, bad_policy(tmp_path, "hoards"))
    children = [workload.spinner(latency) for _ in range(3)]
    for child in children * 2:
        child.progress(2)
    assert latency.fallback is None
    late = workload.spinner(batch)
    late.progress(2)


def test_leaf_gets_its_priority_cpu_first_and_moves_there_when_it_becomes_free(
    workload: Workload, tree: MakeTree
) -> None:
    root = tree(PRIORITY)
    latency, batch = leaves_of(root)
    hogs = [workload.spinner(batch) for _ in range(3)]
    until(lambda: batch.granted == CpuSet([1, 2, 3]), "the batch leaf uses all CPUs")
    stays = workload.spinner(latency)
    until(lambda: stays.at == 3, "it takes the priority CPU from the batch leaf")

    def moves_by_itself() -> bool:
        """Whether one of two tasks preempts itself to move to the priority CPU when the other, which is there, ends."""
        nonlocal stays
        before = trees.leaves(root)[0].self_preempts
        other = workload.spinner(latency)
        other.progress()
        until(lambda: len(latency.granted) == 2 and (stays.at == 3) != (other.at == 3), "one is on another CPU")
        ends, stays = (stays, other) if stays.at == 3 else (other, stays)
        ends.kill()
        until(lambda: stays.at == 3, "the other task moves to the priority CPU")
        return trees.leaves(root)[0].self_preempts > before

    # If the other one waits at that moment, it gets the priority CPU without a preemption.
    until(moves_by_itself, "a task preempts itself")
    until(lambda: latency.granted == CpuSet([3]), "its CPU goes back")
    for child in (stays, *hogs):
        child.progress()


@pytest.mark.kernel_independent
def test_poke_threshold_limits_preemptions_and_no_idle_cpu(workload: Workload, tree: MakeTree) -> None:
    root = tree(HELD)
    latency, batch = leaves_of(root)
    server = workload.sleeper(latency)
    hogs = [workload.spinner(batch) for _ in range(3)]
    until(lambda: batch.granted == CpuSet([1, 2, 3]), "the batch leaf uses all CPUs")
    began, before = time.monotonic(), trees.leaves(root)[0]
    wake(server, times=3)  # those that preempt no task wait for the leaf's turn
    leaf, passed = trees.leaves(root)[0], time.monotonic() - began
    assert leaf.preemptions - before.preemptions <= 1 + passed / 10
    assert leaf.pokes_held > before.pokes_held
    for hog in hogs:
        hog.kill()
    until(lambda: len(root.granted) == 3, "all CPUs idle")
    before = trees.leaves(root)[0]
    wake(server, times=10)
    after = trees.leaves(root)[0]
    assert after.grants - before.grants >= 10
    assert after.pokes_held == before.pokes_held
