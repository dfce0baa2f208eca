# SPDX-License-Identifier: Apache-2.0
"""Enclaves: creation and destruction, CPUs, tasks and pins."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from command import fork
from ghostbpf.loaders import sched_ext
from ghostbpf.loaders.errors import GhostError
from ghostbpf.loaders.maps import Map, MmapArray
from ghostbpf.schedulers import core, tasks
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.errors import EnclaveBusy, NoSuchEnclave, TaskError
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from workload import MakeEnclave, Workload, in_ext, offline, until

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.shared_core,
    pytest.mark.kernel_independent(on="oldest"),
]


def params(enclave: Enclave, policy: Policy, bank: int = 0) -> MmapArray:
    """The parameters of an enclave's policy, opened through their pin."""
    return MmapArray(Map.open(enclave.path / f"policy_{bank}" / "params"), *policy.params_type)


@pytest.mark.own_core
def test_created_enclave_is_listed_by_every_open(enclave: MakeEnclave) -> None:
    enclave("1-2", "biff")
    enclave("3", "rr")
    enclaves = Enclaves.open()
    assert enclaves is not None
    assert [(e.id, str(e.cpus), e.policy, e.nr_tasks, e.swaps, e.uid) for e in enclaves] == [
        (1, "1-2", "biff", 0, 0, 0),
        (2, "3", "rr", 0, 0, 0),
    ]
    assert 0 <= enclaves.get(2).age <= enclaves.get(1).age < 3600
    assert enclaves.free_cpus() == CpuSet([0])
    for id in (0, 3, 63, 64, -1):
        with pytest.raises(NoSuchEnclave, match=f"no enclave {id}"):
            enclaves.get(id)


@pytest.mark.own_core
def test_no_core_is_attached_until_an_enclave_is_made() -> None:
    assert Enclaves.open() is None
    with Enclaves.change() as enclaves:
        assert enclaves is None
    with Enclaves.create():
        assert sched_ext.status().state == "enabled"
    assert sched_ext.status().state == "disabled"
    assert not core.ROOT.exists()


@pytest.mark.own_core
def test_last_destroy_detaches_and_hands_tasks_back_with_their_nice(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1-3")
    children = [workload.spinner(e) for _ in range(3)]
    for nice, child in zip((0, 5, 19), children, strict=True):
        os.setpriority(os.PRIO_PROCESS, child.pid, nice)
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(e.id).destroy()
    assert Enclaves.open() is None
    assert sched_ext.status().state == "disabled"
    assert not core.ROOT.exists()
    for nice, child in zip((0, 5, 19), children, strict=True):
        assert tasks.policy_of(child.pid) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == nice
        child.progress()


@pytest.mark.own_core
def test_pins_are_a_directory_per_enclave_for_its_owner_alone(enclave: MakeEnclave) -> None:
    for e in (enclave("1"), enclave("2", "rr")):
        assert (e.path / "policy_0" / "params").exists()
    paths = [core.ROOT, *core.ROOT.rglob("*")]
    modes = {str(path): stat.filemode(path.stat().st_mode) for path in paths}
    assert modes == {str(path): "drwx------" if path.is_dir() else "-rw-------" for path in paths}
    assert {path.name for path in core.ROOT.iterdir()} == {"core", "enclave_1", "enclave_2"}
    assert (core.CORE / "link").exists()


@pytest.mark.own_core
def test_processes_that_make_enclaves_at_once_take_turns() -> None:
    gate_out, gate_in = os.pipe()

    def make(cpus: str) -> None:
        os.read(gate_out, 1)
        with Enclaves.create() as enclaves:
            made = enclaves.new(CpuSet.parse(cpus), POLICIES["biff"])
        print(made.id, made.cpus)

    processes = [fork(lambda cpus=cpus: make(cpus)) for cpus in ("1", "2", "3", "2-3")]
    os.write(gate_in, b"!" * len(processes))
    done = [process.wait() for process in processes]
    os.close(gate_out)
    os.close(gate_in)

    listed = {(e.id, str(e.cpus)) for e in Enclaves.open() or ()}
    printed = {tuple(result.out.split()) for result in done if result.status == 0}
    assert {(str(id), cpus) for id, cpus in listed} == printed
    assert sorted(id for id, _ in listed) == list(range(1, len(listed) + 1))
    # Of "2", "3" and "2-3", the first one excludes those that overlap with it.
    assert {cpus for _, cpus in listed} in ({"1", "2", "3"}, {"1", "2-3"})
    for result in done:
        assert result.status == 0 or "EnclaveBusy: enclave" in result.err
    with Enclaves.change() as enclaves:
        for e in enclaves or ():
            e.destroy()


@pytest.mark.own_core
@pytest.mark.soak
def test_enclave_64_is_refused_with_the_limit(enclave: MakeEnclave) -> None:
    e = enclave("1")
    others = [e.core.enclaves[id] for id in range(2, core.constant("MAX_ENCLAVES"))]
    for record in others:
        record.state = core.constant("ENCLAVE_ACTIVE")
    try:
        with pytest.raises(GhostError, match="63 enclaves"), Enclaves.create() as enclaves:
            enclaves.new(CpuSet([2]), POLICIES["biff"])
    finally:
        for record in others:
            record.state = core.constant("ENCLAVE_FREE")


def test_task_added_runs_in_the_ext_class_and_removed_in_fair(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1")
    child = workload.spinner()
    assert not in_ext(child.pid)
    e.add(child.pid)
    assert [(task.tid, task.pid) for task in e.tasks()] == [(child.pid, child.pid)]
    assert in_ext(child.pid)
    child.progress()
    e.remove(child.pid)
    assert not in_ext(child.pid)
    assert tasks.policy_of(child.pid) == os.SCHED_OTHER
    assert e.tasks() == []
    child.progress()


def test_whole_process_joins_and_leaves_with_every_thread(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1-2")
    child = workload.crowd(5, threading.Event().wait)
    until(lambda: child.value == 5)
    assert e.add_process(child.pid) == 6
    threads = tasks.threads(child.pid)
    assert len(threads) == 6
    assert {task.tid for task in e.tasks()} == threads
    assert {task.pid for task in e.tasks()} == {child.pid}
    assert e.remove_process(child.pid) == 6
    assert e.tasks() == []
    assert {tasks.policy_of(tid) for tid in threads} == {os.SCHED_OTHER}


def test_destroy_of_one_leaves_the_other_at_work(workload: Workload, enclave: MakeEnclave) -> None:
    doomed, other = enclave("1"), enclave("2")
    children = [workload.spinner(e) for e in (doomed, other)]
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(doomed.id).destroy()
        assert doomed.id not in enclaves.ids()
    assert not in_ext(children[0].pid)
    assert in_ext(children[1].pid)
    assert not doomed.path.exists()
    for child in children:
        child.progress()


def test_reused_id_is_another_enclave_and_takes_no_stale_member(workload: Workload, enclave: MakeEnclave) -> None:
    old = enclave("2")
    generation = int(old._record.generation)
    child = workload.spinner(old)
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(old.id).destroy()
    new = enclave("3")
    assert new.id == old.id
    assert new._record.generation != generation
    # As a join that lost a race with destroy leaves a task: marked for the old enclave, and in the class.
    assert new.core.join(child.pid, old.id, generation)[0] == 0
    tasks.set_policy(child.pid, tasks.SCHED_EXT)
    assert in_ext(child.pid)
    assert new.tasks() == []
    assert [(task.tid, task.enclave) for task in new.core.tasks()] == [(child.pid, 0)]
    child.progress(100)
    assert new.counters().switches == 0
    tasks.set_policy(child.pid, os.SCHED_OTHER)


def test_counters_start_at_zero_when_an_id_is_reused(workload: Workload, enclave: MakeEnclave) -> None:
    enclave("1")
    first = enclave("2")
    child = workload.spinner(first)
    until(lambda: first.counters().switches > 0)
    child.stop()
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(first.id).destroy()
    again = enclave("2")
    assert again.id == first.id
    assert again.per_cpu() == {}
    assert again.swaps == 0


def test_cpus_of_another_enclave_are_refused_with_its_id(enclave: MakeEnclave) -> None:
    owner = enclave("1-2")
    for cpus in ("1-2", "2", "2-3", "0-3"):
        with pytest.raises(EnclaveBusy, match="enclave 1 holds CPU") as busy:
            enclave(cpus)
        assert busy.value.owner == owner.id
        assert CpuSet.parse(busy.value.cpus) == CpuSet.parse(cpus) & owner.cpus
        assert busy.value.hint is not None
    assert not (core.ROOT / "enclave_2").exists()


def test_missing_and_offline_cpus_are_named() -> None:
    def refused(cpus: CpuSet) -> str:
        with Enclaves.create() as enclaves, pytest.raises(GhostError) as error:
            enclaves.new(cpus, POLICIES["biff"])
        return str(error.value)

    assert "99" in refused(CpuSet([1, 99]))
    assert "at least one CPU" in refused(CpuSet())
    with offline(3):
        assert refused(CpuSet([2, 3])) == "CPU 3 is not online"


def test_enclaves_side_by_side_keep_to_their_own_cpus_and_counters(workload: Workload, enclave: MakeEnclave) -> None:
    made = [enclave("1", "biff"), enclave("2", "rr"), enclave("3", "biff")]
    children = {e.id: [workload.spinner(e) for _ in range(2)] for e in made[:2]}
    for e in made[:2]:
        for child in children[e.id]:
            child.forget()
            child.progress(200)
            assert child.cpus_seen == e.cpus
        assert {task.tid for task in e.tasks()} == {child.pid for child in children[e.id]}
    assert all(e.counters().switches > 0 for e in made[:2])
    assert all(e.counters().runtime_ns > 0 for e in made[:2])
    assert made[2].per_cpu() == {}


def test_tasks_move_from_enclave_to_enclave_without_a_stop(workload: Workload, enclave: MakeEnclave) -> None:
    left, right = enclave("1"), enclave("2", "rr")
    runs, sleeps = workload.spinner(left), workload.sleeper(left)
    for target in (right, left, right):
        sleeps.asleep()
        for child in (runs, sleeps):
            target.add(child.pid)
        cpu = target.cpus.first
        until(lambda cpu=cpu: runs.at == cpu, f"it runs on CPU {cpu}")
        runs.forget()
        runs.progress(100)
        assert runs.cpus_seen == target.cpus
        sleeps.wake()
        until(lambda cpu=cpu: sleeps.at == cpu, f"it wakes on CPU {cpu}")
        assert {task.tid for task in target.tasks()} == {runs.pid, sleeps.pid}


def test_parameters_changed_through_their_pin_take_effect_at_once(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1", "biff", slice="10s")
    with params(e, POLICIES["biff"]) as pinned:
        assert pinned[0].slice_ns == 10 * 10**9
        pinned[0].slice_ns = 1 << 60
        children = [workload.spinner(e) for _ in range(2)]
        until(lambda: any(child.loops > 1000 for child in children))
        assert sum(child.loops > 0 for child in children) == 1, "with an endless slice, the first task keeps the CPU"
        assert e.counters().preempted == 0
        pinned[0].slice_ns = 10**6
    for child in children:
        child.progress(1000)
    assert e.counters().preempted > 0


def test_options_of_a_policy_reach_its_parameters(enclave: MakeEnclave) -> None:
    with params(enclave("1", "biff", slice="20ms"), POLICIES["biff"]) as pinned:
        assert pinned[0].slice_ns == 20_000_000
    with params(enclave("2", "rr"), POLICIES["rr"]) as pinned:
        assert pinned[0].slice_ns == 5_000_000
    with pytest.raises(ValueError, match="no option speed"):
        enclave("3", "rr", speed="1")
    assert not (core.ROOT / "enclave_3").exists()


def test_gone_tasks_and_kernel_threads_are_refused(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1")
    gone = workload.spinner()
    gone.stop()
    with pytest.raises(TaskError, match=f"task {gone.pid}: there is no such task"):
        e.add(gone.pid)
    with pytest.raises(TaskError, match=f"task {gone.pid}: there is no such task"):
        e.add_process(gone.pid)
    assert Path("/proc/2/comm").read_text() == "kthreadd\n"
    with pytest.raises(TaskError, match="task 2: it is a kernel thread"):
        e.add(2)
    assert tasks.policy_of(2) == os.SCHED_OTHER
    assert e.core.tasks() == []
