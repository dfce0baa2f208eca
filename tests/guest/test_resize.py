# SPDX-License-Identifier: Apache-2.0
"""Resizing enclaves while their tasks run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Collection, Iterator

import pytest
from agents import PATIENT, MakeAgent, MakeAgentProcess, Manual, asleep, children_of, drive, manual, task_of
from command import fork, ghostbpf
from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.agents.task import LATCHED, TxnState
from ghostbpf.schedulers.core import Core, constant
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.errors import EnclaveBusy, ResizeError
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.tasks import SCHED_EXT
from workload import Child, MakeEnclave, Me, Workload, in_ext, offline, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]


@contextlib.contextmanager
def changing() -> Iterator[Enclaves]:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        yield enclaves


def resize(one: Enclave, cpus: str, steal_from: Enclave | None = None) -> None:
    with changing():
        one.resize(CpuSet.parse(cpus), steal_from=steal_from)


def settle(children: Collection[Child], one: Enclave, loops: int = 20) -> None:
    """Wait until all ``children`` run on CPUs of ``one``, and check that they stay there."""
    for child in children:
        until(lambda child=child: child.at in one.cpus, f"{child} runs on CPU {one.cpus}")
    for child in children:
        child.forget()
    for child in children:
        child.progress(loops)
        assert child.cpus_seen <= one.cpus


def uses_all(children: Collection[Child], one: Enclave) -> None:
    until(lambda: CpuSet(child.at for child in children) == one.cpus, f"all of CPU {one.cpus} are used")


def wakes(sleeper: Child, one: Enclave) -> None:
    """Wake ``sleeper``, and check that it runs in the enclave."""
    loops = sleeper.asleep().loops
    sleeper.wake()
    until(lambda: sleeper.loops > loops, "the sleeper runs")
    assert sleeper.at in one.cpus


def takes_turns(me: Me) -> None:
    """Compute, and yield now and then: some policies let a task run until it does."""
    while not me.stopped:
        me.spin(1)
        os.sched_yield()


def is_settled(one: Enclave) -> bool:
    """Whether the resize has left no mark."""
    return not one._record.draining and not any(cpu.stale_queues for cpu in one.core.cpus)


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    "policy", ["cfs_bpf", pytest.param("biff", marks=pytest.mark.soak), pytest.param("rr", marks=pytest.mark.soak)]
)
def test_tasks_follow_the_cpus_of_their_enclave(workload: Workload, enclave: MakeEnclave, policy: str) -> None:
    one = enclave("1-2", policy)
    spinners = [workload.spinner(one) for _ in range(5)]
    sleeper = workload.sleeper(one)
    for cpus in ("2-3", "1", "1-3"):
        resize(one, cpus)
        assert str(one.cpus) == cpus
        settle(spinners, one)
        uses_all(spinners, one)
        wakes(sleeper, one)
    assert is_settled(one)
    assert one.counters().affinity_misses == 0
    assert one.nr_tasks == 6
    assert all(in_ext(child.pid) for child in spinners)


@pytest.mark.kernel_independent
def test_cpus_move_from_one_enclave_to_the_other_in_one_step(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3", "cfs_bpf")
    mine, theirs = ([workload.spinner(one) for _ in range(3)] for one in (first, second))
    resize(first, "1-2", steal_from=second)
    resize(second, "2-3", steal_from=first)
    resize(first, "2", steal_from=second)
    assert (str(first.cpus), str(second.cpus)) == ("2", "3")
    settle(mine, first)
    settle(theirs, second)
    assert is_settled(first)
    assert is_settled(second)


@pytest.mark.kernel_independent
def test_task_without_a_cpu_in_the_enclave_runs_elsewhere_until_its_cpu_is_back(
    workload: Workload, enclave: MakeEnclave
) -> None:
    one = enclave("1-2", "cfs_bpf")
    bound, free = [workload.spinner(one, cpus=[2]) for _ in range(2)], workload.spinner(one)
    for child in bound:
        child.progress()
    done = ghostbpf("enclave", "resize", one.id, "--cpus", "-2", "--json")
    assert done.status == 0
    result = json.loads(done.out)
    moved, elsewhere = set(result.pop("moved")), set(result.pop("elsewhere"))
    assert result == {"enclave": one.id, "before": "1-2", "after": "1"}
    assert elsewhere == {child.pid for child in bound}
    assert elsewhere <= moved <= {*elsewhere, free.pid}
    assert f"2 tasks may use none of the CPUs of enclave {one.id}, 1, and will run elsewhere" in done.err
    for child in bound:
        child.progress(50)
    assert [task.elsewhere for task in one.tasks() if task.tid != free.pid] == [True, True]
    settle([free], one)
    resize(one, "1-2")
    until(lambda: not any(task.elsewhere for task in one.tasks()), "they are back")
    settle([*bound, free], one)


@pytest.mark.kernel_independent
def test_command_adds_removes_and_steals_cpus(enclave: MakeEnclave) -> None:
    one, other = enclave("1"), enclave("2")
    for arguments, lines in (
        (("+3",), f"enclave {one.id}: CPU 1 -> 1,3\n"),
        (("-1",), f"enclave {one.id}: CPU 1,3 -> 3\n"),
        (("3",), f"enclave {one.id}: CPU 3, as before\n"),
    ):
        done = ghostbpf("enclave", "resize", one.id, "--cpus", *arguments)
        assert (done.status, done.out) == (0, lines)
    resize(other, "1-2")
    done = ghostbpf("enclave", "resize", one.id, "--cpus", "+2", "--steal", other.id)
    assert done.out == f"enclave {one.id}: CPU 3 -> 2-3\nenclave {other.id}: CPU 1-2 -> 1\n"


@pytest.mark.kernel_independent
def test_refused_change_is_explained_and_changes_nothing(workload: Workload, enclave: MakeEnclave) -> None:
    one, other = enclave("1-2"), enclave("3")
    spinner = workload.spinner(one)
    for arguments, status, message in (
        (
            ("--cpus", "1-9"),
            1,
            f"cannot change the CPUs of enclave {one.id}: CPU 4-9 is not online\n  try: choose from",
        ),
        (("--cpus", "-1-2"), 1, f"cannot change the CPUs of enclave {one.id}: it would have no CPU\n"),
        (
            ("--cpus", "+3"),
            1,
            f"enclave {other.id} holds CPU 3\n  try: take other CPUs, or take these from it: --steal",
        ),
        (("--cpus", "+3", "--steal", str(other.id)), 1, f"CPUs of enclave {other.id}: it would have no CPU\n"),
        (("--cpus", "+3", "--steal", "40"), 1, "there is no enclave 40"),
        (("--cpus", "+3", "--steal", str(one.id)), 2, "--steal takes CPUs from another enclave"),
        (("--cpus", "1-x"), 1, 'bad CPU list "1-x"'),
        (("--cpus", "-3"), 1, 'bad CPU list "-3": CPU 3 is not there'),
        ((), 2, "Missing option '--cpus'"),
    ):
        done = ghostbpf("enclave", "resize", one.id, *arguments)
        assert (done.status, done.out) == (status, "")
        assert message in done.err
    assert (str(one.cpus), str(other.cpus)) == ("1-2", "3")
    with pytest.raises(EnclaveBusy) as caught:
        resize(one, "1-3")
    assert (caught.value.owner, caught.value.cpus) == (other.id, "3")
    done = ghostbpf("enclave", "resize", 41, "--cpus", "1")
    assert (done.status, "there is no enclave 41" in done.err) == (1, True)
    settle([spinner], one)


@pytest.mark.kernel_independent
def test_last_cpu_that_is_online_cannot_leave(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2")
    spinner = workload.spinner(one)
    with offline(2):
        with pytest.raises(ResizeError, match="CPU 2, which it would have, is not online"):
            resize(one, "2")
        resize(one, "2-3")
        settle([spinner], one)
    assert str(one.cpus) == "2-3"


@pytest.mark.kernel_independent
def test_enclave_that_is_being_destroyed_keeps_its_cpus(workload: Workload, enclave: MakeEnclave) -> None:
    one, other = enclave("1-2"), enclave("3")
    with changing():
        one._record.state = constant("ENCLAVE_DYING")
        try:
            with pytest.raises(ResizeError, match=f"enclave {one.id}: it is being destroyed"):
                one.resize(CpuSet([1]))
            with pytest.raises(ResizeError, match=f"enclave {one.id}: it is being destroyed"):
                other.resize(CpuSet([2, 3]), steal_from=one)
        finally:
            one._record.state = constant("ENCLAVE_ACTIVE")
    assert (str(one.cpus), str(other.cpus)) == ("1-2", "3")


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    ("dies", "cpus"), [pytest.param("before", "1-2", marks=pytest.mark.soak), ("after", "2-3")], ids=["before", "after"]
)
def test_loader_killed_during_a_resize_leaves_the_old_or_the_new_cpus(
    workload: Workload, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch, dies: str, cpus: str
) -> None:
    one = enclave("1-2", "cfs_bpf")
    spinners = [workload.spinner(one) for _ in range(4)]
    change = Core.resize

    def die(self: Core, *arguments: object) -> None:
        if dies == "after":
            change(self, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        monkeypatch.setattr(Core, "resize", die)
        resize(one, "2-3")

    assert fork(killed).wait().status == 137
    assert str(one.cpus) == cpus
    assert is_settled(one) == (dies == "before")
    settle(spinners, one)
    uses_all(spinners, one)
    with changing():
        pass
    assert is_settled(one)
    settle(spinners, one)


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_commands_killed_at_any_instant_lose_no_cpu_and_no_task(
    workload: Workload, enclave: MakeEnclave, rng: random.Random
) -> None:
    """A CPU has one owner or none, and its record agrees with that of its enclave."""
    first, second = enclave("1"), enclave("2-3", "cfs_bpf")
    mine, theirs = ([workload.spinner(one) for _ in range(2)] for one in (first, second))
    for turn in range(20):
        taker, giver, cpus = (first, second, "1,3") if turn % 2 == 0 else (second, first, "2-3")
        command = fork(lambda taker=taker, giver=giver, cpus=cpus: resize(taker, cpus, giver))
        if not command.ended(rng.uniform(0, 0.2)):
            command.signal(signal.SIGKILL)
        command.wait()
        assert (str(first.cpus), str(second.cpus)) in (("1", "2-3"), ("1,3", "2"))
        owners = {cpu: int(first.core.cpus[cpu].enclave) for cpu in (1, 2, 3)}
        assert owners == {1: first.id, 2: second.id, 3: first.id if 3 in first.cpus else second.id}
    settle(mine, first)
    settle(theirs, second)


# Agents:


@pytest.mark.kernel_independent
def test_agent_learns_of_its_cpus_and_commits_to_them_alone(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    policy = one.policy
    assert isinstance(policy, Manual)
    sleepers = [workload.sleeper(one.enclave) for _ in range(3)]
    for sleeper in sleepers:
        asleep(one, sleeper)
    for cpus in ("3", "1-3"):
        resize(one.enclave, cpus)
        drive(one, lambda cpus=cpus: policy.cpu_log[-1:] == [("on_cpus_changed", CpuSet.parse(cpus))], "it is told")
        assert str(one.cpus) == cpus
        assert list(filter(one.is_online, range(4))) == list(one.cpus)
        drive(one, lambda: one.idle_cpus() == list(one.cpus), "the CPUs are idle")
        for sleeper in sleepers:
            loops = sleeper.loops
            sleeper.wake()
            drive(one, lambda sleeper=sleeper, loops=loops: sleeper.loops > loops, "it runs")
            assert sleeper.at in one.cpus
            asleep(one, sleeper)
    assert not policy.refused


@pytest.mark.kernel_independent
def test_task_committed_to_a_cpu_that_leaves_is_decided_again(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    child = asleep(one, workload.sleeper(one.enclave))
    held = one.enclave.core.cpus[2]
    held.group_hold = one.enclave.id  # CPU 2 runs nothing that is committed to it
    policy = manual(one)
    child.wake()
    task = task_of(one, child)
    policy.kept[task] = 2
    drive(one, lambda: task.state == LATCHED, "it is committed to CPU 2")
    policy.kept.clear()
    policy.auto = True
    resize(one.enclave, "1")
    drive(one, lambda: child.loops == 1, "it runs")
    assert child.at == 1
    assert [(refused.cpu, state) for refused, state in policy.refused] == [(2, TxnState.CPU_OFFLINE)]
    held.group_hold = 0


@pytest.mark.kernel_independent
def test_tasks_queued_by_ops_that_know_the_former_cpus_run(workload: Workload, agent: MakeAgent) -> None:
    """One is on the own queue of a CPU that has left, the other, which may use that CPU alone, on the enclave's."""
    one = agent("1-2")
    latched, bound = (asleep(one, workload.sleeper(one.enclave, cpus=cpus)) for cpus in ((1, 2), (2,)))
    left = one.enclave.core.cpus[2]
    left.group_hold = one.enclave.id
    policy = manual(one)
    for child in (latched, bound):
        child.wake()
    policy.kept[task_of(one, latched)] = 2
    drive(one, lambda: left.latched, "it is committed to CPU 2")
    policy.kept.clear()
    task_of(one, bound)
    with changing():
        record = one.enclave._record
        record.draining = constant("DRAINING_RESIZED")
        left.enclave, left.stale_queues, left.group_hold = 0, 1, 0
        record.cpus = CpuSet([1]).words(len(record.cpus))
    stray = workload.spinner(cpus=[1], start=False)  # a task of no enclave makes CPU 1 dispatch, which kicks CPU 2
    os.sched_setscheduler(stray.pid, SCHED_EXT, os.sched_param(0))
    stray.wake()
    stray.progress()
    policy.auto = True
    drive(one, lambda: latched.loops and bound.loops, "they run")
    assert (latched.at, bound.at) == (1, 2)
    assert not is_settled(one.enclave)
    with changing():
        pass
    assert is_settled(one.enclave)


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("fifo_per_cpu", ["2-3"]),
        pytest.param("fifo_centralized", ["2-3", "3", "1-3"], marks=pytest.mark.soak),
        pytest.param("cfs", ["2-3", "3", "1-3"], marks=pytest.mark.soak),
    ],
    ids=["fifo_per_cpu", "fifo_centralized", "cfs"],
)
def test_agent_processes_follow_the_cpus_of_their_enclave(
    workload: Workload, agent_process: MakeAgentProcess, policy: str, changes: list[str]
) -> None:
    one, lead = agent_process("1-2", policy, fastpath="off", **PATIENT)
    spinners = [workload.spawn(takes_turns, one) for _ in range(4)]
    sleeper = workload.sleeper(one)
    for cpus in changes:
        resize(one, cpus)
        settle(spinners, one, 5)
        if policy != "fifo_centralized":
            until(lambda: agents_of(one) == one.cpus, "each CPU has its agent")
            until(lambda: len(children_of(lead.pid)) == len(one.cpus), "the other agents have ended")
        wakes(sleeper, one)
    assert lead.check()
    assert one.nr_tasks == 5


def agents_of(one: Enclave) -> CpuSet:
    """The CPUs that have an agent of their own."""
    agents = Agents.open(one.id)
    assert agents is not None
    return CpuSet(number - 1 for number, channel in enumerate(agents.channels) if number and channel.tid)


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_agent_that_spins_leaves_a_cpu_that_the_enclave_loses(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, lead = agent_process("1-3", "fifo_centralized", spin="yes", **PATIENT)
    spinner = workload.spinner(one)
    for _ in range(2):
        spun = until(lambda: one.spun_cpu, "the agent spins on a CPU")
        resize(one, str(CpuSet([1, 2, 3]) - CpuSet([spun])))
        until(lambda: one.spun_cpu in one.cpus, "the agent spins on another")
        spinner.progress()
        resize(one, "1-3")
    with pytest.raises(ResizeError, match="its agent spins, and needs a CPU besides CPU 1"):
        resize(one, "1")
    assert lead.check()


# Storms:


def hotplug_and_resize(one: Enclave, turns: int, choose: random.Random, check: Callable[[], None]) -> None:
    """Change the enclave's CPUs and take CPUs down and up, at random, ``turns`` times each; CPU 1 stays online."""
    down: set[int] = set()
    try:
        for turn in range(turns):
            cpus = {1, *choose.sample((2, 3), choose.randint(0, 2))}
            with contextlib.suppress(ResizeError):  # a CPU that is to come is offline
                resize(one, str(CpuSet(cpus)))
            cpu = choose.choice((2, 3))
            set_online(cpu, cpu in down)
            down ^= {cpu}
            if turn % 10 == 9:
                check()
    finally:
        for cpu in down:
            set_online(cpu, True)


SOAKS = [("cfs_bpf", 500), ("fifo_centralized", 500), ("fifo_per_cpu", 100), ("cfs", 100)]
MARATHONS = [("fifo_per_cpu", 500), ("cfs", 500)]


@pytest.mark.parametrize(
    ("policy", "turns"),
    [
        pytest.param("biff", 20, marks=pytest.mark.kernel_independent),
        *(pytest.param(*storm, marks=pytest.mark.soak) for storm in SOAKS),
        *(pytest.param(*storm, marks=pytest.mark.marathon) for storm in MARATHONS),
    ],
)
@pytest.mark.timeout(3600)
def test_resize_and_hotplug_together_under_load_lose_no_task(
    workload: Workload, governed: MakeEnclave, policy: str, turns: int, rng: random.Random
) -> None:
    one = governed("1-3", policy)
    spinners = [workload.spawn(takes_turns, one) for _ in range(4)]
    bound = workload.spawn(takes_turns, one, cpus=[2])
    sleeper = workload.sleeper(one)

    def check() -> None:
        for child in (*spinners, bound):
            child.progress()
        loops = sleeper.asleep().loops
        sleeper.wake()
        until(lambda: sleeper.loops > loops, "the sleeper runs")

    hotplug_and_resize(one, turns, rng, check)
    resize(one, "1-3")
    settle(spinners, one, 5)
    check()
    assert is_settled(one)
    assert one.nr_tasks == 6


@pytest.mark.kernel_independent
@pytest.mark.soak
@pytest.mark.own_core
def test_enclave_of_the_whole_machine_leaves_a_cpu_to_the_built_in_fifo(workload: Workload) -> None:
    with Enclaves.temporary(POLICIES["cfs_bpf"], full=True) as one:
        everywhere = one.cpus
        child, bound = workload.spinner(), workload.spinner(cpus=[3])
        for cpus in ("0-2", "1", str(everywhere)):
            resize(one, cpus)
            settle([child], one)
            bound.progress()
        assert str(one.cpus) == str(everywhere)
        assert is_settled(one)
