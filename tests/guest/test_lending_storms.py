# SPDX-License-Identifier: Apache-2.0
"""Lending under storms: agents that die, changes of everything at random; no task is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal

import pytest
from agents import PATIENT, MakeAgentProcess
from command import fork
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import ResizeError
from ghostbpf.schedulers.registry import POLICIES
from workload import MakeEnclave, Workload, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.soak]


@pytest.mark.parametrize("policy", ["fifo_centralized", "fifo_per_cpu", "cfs"])
@pytest.mark.parametrize("dies", ["lender", "borrower"])
def test_agent_that_dies_during_borrowed_turns_strands_no_task(
    workload: Workload, agent_process: MakeAgentProcess, policy: str, dies: str
) -> None:
    lender, lead = agent_process("2-3", policy, **PATIENT)
    borrower, other = agent_process("1", policy, **PATIENT)
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(lender.id).set_lending(lend=True)
        enclaves.get(borrower.id).set_lending(borrow=True)
    children = [workload.spinner(borrower) for _ in range(4)]
    sleeper = workload.sleeper(lender)
    until(lambda: {child.at for child in children} == {1, 2, 3}, "CPU 1-3 are used")
    os.kill((lead if dies == "lender" else other).pid, signal.SIGKILL)
    for child in children:
        child.progress(20)
    until(lambda: {child.at for child in children} == {1, 2, 3}, "CPU 1-3 are used")
    loops = sleeper.loops
    sleeper.wake()
    until(lambda: sleeper.loops > loops, "the lender's task runs")
    assert sleeper.at in lender.cpus


def test_loader_killed_while_it_changes_what_is_lent_leaves_two_enclaves_that_work(
    workload: Workload, enclave: MakeEnclave, rng: random.Random
) -> None:
    lender, borrower = enclave("2-3", "cfs_bpf"), enclave("1", "rr")
    children = [workload.spinner(borrower) for _ in range(3)]
    sleepers = [workload.sleeper(one) for one in (lender, borrower)]

    def change(is_on: bool) -> None:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(lender.id).set_lending(lend=is_on)
            enclaves.get(borrower.id).set_lending(borrow=is_on)

    for turn in range(30):
        command = fork(lambda turn=turn: change(turn % 2 == 0))
        if not command.ended(rng.uniform(0, 0.5)):
            command.signal(signal.SIGKILL)
        command.wait()
        for child in children:
            child.progress()
        for sleeper in sleepers:
            loops = sleeper.asleep().loops
            sleeper.wake()
            until(lambda sleeper=sleeper, loops=loops: sleeper.loops > loops, "a sleeper runs")
        if turn % 5 == 4:
            change(turn % 2 == 0)
            cpus = {1, 2, 3} if turn % 2 == 0 else {1}
            until(lambda cpus=cpus: {child.at for child in children} == cpus, f"CPU {cpus} are used")


@pytest.mark.parametrize(("lends", "borrows"), [("biff", "cfs_bpf"), ("cfs_bpf", "rr")])
@pytest.mark.timeout(1800)
def test_random_changes_of_both_enclaves_lose_no_task(
    workload: Workload, enclave: MakeEnclave, rng: random.Random, lends: str, borrows: str
) -> None:
    pair = (enclave("2-3", lends), enclave("1", borrows))
    spinners = [workload.spinner(pair[1]) for _ in range(4)]
    bound = workload.spinner(pair[1], cpus=[1, 2])
    sleepers = [workload.sleeper(one) for one in pair]
    down: set[int] = set()

    def change() -> None:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            one, other = (enclaves.get(one.id) for one in rng.sample(pair, 2))
            kind = rng.randrange(4)
            if kind < 2:
                one.set_lending(lend=rng.random() < 0.7, borrow=rng.random() < 0.7, reclaim=rng.choice(["now", "tick"]))
            elif kind == 2:
                one.set_policy(POLICIES[rng.choice(["biff", "rr", "cfs_bpf"])])
            else:
                with contextlib.suppress(ResizeError):
                    cpu = rng.choice([2, 3])
                    one.resize(one.cpus | CpuSet([cpu]), steal_from=other)

    try:
        for turn in range(60):
            change()
            if rng.random() < 0.3:
                down ^= {cpu := rng.choice((2, 3))}
                set_online(cpu, cpu not in down)
            if turn % 10 == 9:
                for child in (*spinners, bound):
                    child.progress()
                for sleeper in sleepers:
                    loops = sleeper.asleep().loops
                    sleeper.wake()
                    until(lambda sleeper=sleeper, loops=loops: sleeper.loops > loops, "a sleeper runs")
    finally:
        for cpu in down:
            set_online(cpu, True)
    assert [one.nr_tasks for one in pair] == [1, 6]
    assert bound.cpus_seen <= CpuSet([1, 2])
