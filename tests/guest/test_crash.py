# SPDX-License-Identifier: Apache-2.0
"""Loaders that die, and changes that race: they leave a working enclave or nothing, and strand no task."""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from command import Done, Running, fork, read_sources_once, start
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers import core, launch, tasks
from ghostbpf.schedulers import enclave as enclave_module
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.errors import NoSuchEnclave, TaskError
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools import run as run_module
from workload import Child, MakeEnclave, Me, Workload, in_ext, until

pytestmark = pytest.mark.usefixtures("quiet")

# Fifty loaders are killed: at any time, at any line of a life with attach, and at any line beside another enclave.
_TIMED, _ATTACHING, _BESIDE = 10, 8, 32

#: The files in which a loader may be killed at any line.
_WATCHED = {module.__file__ for module in (core, enclave_module, launch, tasks, run_module)}


def _nap(me: Me) -> None:
    while not me.stopped:
        me.note()
        time.sleep(0.005)


class Moments:
    """Counts the lines that a forked loader begins, and kills it at a given one."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)
        self._board = memoryview(self._memory).cast("Q")

    @property
    def passed(self) -> int:
        """The number of lines begun."""
        return self._board[0]

    def watch(self, last: int = 0) -> None:
        """Count lines from here on, and kill this process at number ``last``."""
        self._board[0] = 0
        lines = 0

        def at_line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal lines
            # The loops over all possible CPUs are thousands of lines with no effect in the kernel.
            if event == "line" and "_cpus" not in frame.f_code.co_name:
                lines += 1
                self._board[0] = lines
                if lines == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return at_line

        sys.settrace(lambda frame, event, argument: at_line if frame.f_code.co_filename in _WATCHED else None)


def _life(cpus: str, pids: list[int]) -> None:
    """The life of a loader in one process: attach, create, pin, join, swap, destroy, detach."""
    with Enclaves.create() as enclaves:
        made = enclaves.new(CpuSet.parse(cpus), POLICIES["biff"])
    for pid in pids:
        made.add(pid)
    with Enclaves.change() as now:
        assert now is not None
        now.get(made.id).set_policy(POLICIES["rr"])
    with Enclaves.change() as now:
        assert now is not None
        now.get(made.id).destroy()


def _use_up(cpus: str, workload: Workload) -> str:
    """Check that a dead loader left a working enclave on ``cpus`` or nothing, remove it, and return which."""
    until(lambda: sched_ext.status().state in ("enabled", "disabled"))
    enclaves = Enclaves.open()
    if enclaves is None:
        left = "pins without a core" if core.ROOT.exists() else "nothing"
        assert sched_ext.wait_disabled(), "no pin holds the core, but it is attached"
    else:
        left = "an enclave being destroyed" if cpus in map(str, (e.cpus for e in enclaves)) else "nothing"
        assert sched_ext.status().state == "enabled"
    with Enclaves.change() as found:
        for e in found or ():
            if str(e.cpus) != cpus:
                continue
            left = "a working enclave"
            child = workload.spinner(e)
            child.progress()
            assert child.pid in {task.tid for task in e.tasks()}
            e.set_policy(POLICIES["biff" if e.policy == "rr" else "rr"])
            child.progress()
            e.destroy()
            assert not in_ext(child.pid)
            child.progress()
            child.stop()
    return left


def _kill(
    loaders: Callable[[], Iterator[Running]], cpus: str, workload: Workload, children: list[Child]
) -> collections.Counter[str]:
    """Start loaders that die, and check what each left; returns a count of each kind."""
    ends: collections.Counter[str] = collections.Counter()
    for loader in loaders():
        status = loader.wait().status
        assert status in (137, 0)
        ends[_use_up(cpus, workload) if status else "its own end"] += 1
        for child in children:
            child.progress()
            assert tasks.policy_of(child.pid) == os.SCHED_OTHER
    return ends


@pytest.mark.soak
def test_loader_killed_while_it_attaches_or_runs_leaves_a_working_enclave_or_nothing(
    workload: Workload, rng: Random, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = Moments()
    children = [workload.spawn(_nap)]
    assert fork(lambda: _life("1-2", [children[0].pid]), first=moments.watch).wait() == Done(0, "", "")
    lines = moments.passed
    started = time.monotonic()
    assert start("run", "biff", "--cpus", "1-2", "--", "sleep", "0.1").wait() == Done(0, "", "")
    took = time.monotonic() - started

    def loaders() -> Iterator[Running]:
        for _ in range(_TIMED):
            loader = start("run", "biff", "--cpus", "1-2", "--", "sleep", "0.1")
            loader.ended(rng.uniform(0, took))
            loader.signal(signal.SIGKILL)
            yield loader
        for _ in range(_ATTACHING):
            last = rng.randint(1, lines)
            yield fork(lambda: _life("1-2", [children[0].pid]), first=lambda last=last: moments.watch(last))

    ends = _kill(loaders, "1-2", workload, children)
    with capsys.disabled():
        print(f"\n  loaders killed at any time or at one of {lines} lines left: {dict(ends)}")
    assert sched_ext.wait_disabled()
    assert not core.ROOT.exists()


@pytest.mark.soak
def test_loader_killed_beside_another_enclave_harms_neither(
    workload: Workload, enclave: MakeEnclave, rng: Random, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = Moments()
    other = enclave("3")
    resident = workload.spawn(_nap, other)
    children = [workload.spawn(_nap), workload.spawn(_nap)]
    pids = [child.pid for child in children]
    assert fork(lambda: _life("1-2", pids), first=moments.watch).wait() == Done(0, "", "")
    lines = moments.passed

    def loaders() -> Iterator[Running]:
        for _ in range(_BESIDE):
            last = rng.randint(1, lines)
            yield fork(lambda: _life("1-2", pids), first=lambda last=last: moments.watch(last))

    ends = _kill(loaders, "1-2", workload, children)
    with capsys.disabled():
        print(f"\n  loaders killed at one of {lines} lines left: {dict(ends)}")
    assert ends["a working enclave"] > 0
    assert ends["nothing"] > 0
    assert [e.id for e in Enclaves.open() or ()] == [other.id]
    assert {path.name for path in core.ROOT.iterdir()} == {"core", f"enclave_{other.id}"}
    assert in_ext(resident.pid)
    resident.progress()


#: Each process shows its pid, forks the next and exits: a destroy that misses one misses all that follow.
_CHAIN = """
    $SIG{CHLD} = 'IGNORE'; open F, '+<', shift;
    while (1) { sysseek F, 0, 0; syswrite F, sprintf '%10d', $$; select undef, undef, undef, 0.002; exit if fork }
"""
_FORKER = "while (1) { exit unless fork; wait; select undef, undef, undef, 0.002 }"


@pytest.fixture
def families(tmp_path: Path) -> Iterator[list[Callable[[], int]]]:
    """A chain of forks, and a process that forks and waits: a function for each that returns the pid to add."""
    shown = tmp_path / "pid"
    shown.write_text("")
    chain = subprocess.Popen(["perl", "-e", _CHAIN, shown], process_group=0)
    forker = subprocess.Popen(["perl", "-e", _FORKER], process_group=0)
    until(lambda: shown.read_text())
    yield [lambda: int(shown.read_text()), lambda: forker.pid]
    for process in (chain, forker):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("policy", "races"), [("biff", 25), ("fifo_centralized", 25), pytest.param("biff", 100, marks=pytest.mark.marathon)]
)
def test_destroy_races_with_joins_forks_and_exits(
    workload: Workload,
    enclave: MakeEnclave,
    families: list[Callable[[], int]],
    monkeypatch: pytest.MonkeyPatch,
    rng: Random,
    policy: str,
    races: int,
) -> None:
    read_sources_once(monkeypatch, POLICIES["biff"], POLICIES[policy])
    stays = enclave("3")  # keeps the core attached, so that a lost task would be listed
    joiners = [workload.spawn(_nap), workload.sleeper()]

    def join(doomed: Enclave, begin: threading.Barrier) -> None:
        begin.wait()
        with contextlib.suppress(NoSuchEnclave):
            while True:
                for child in joiners:
                    doomed.add(child.pid)

    with Enclaves.change() as enclaves:
        assert enclaves is not None
        for _ in range(races):
            doomed = enclaves.new(CpuSet([1, 2]), POLICIES[policy])
            for pid in families:
                until(lambda doomed=doomed, pid=pid: _joined(doomed, pid()), "the family has joined")
            begin = threading.Barrier(2)
            thread = threading.Thread(target=join, args=(doomed, begin))
            thread.start()
            begin.wait()
            time.sleep(rng.uniform(0, 0.01))
            doomed.destroy()
            thread.join()
            assert stays.core.tasks() == [], "destroy, or a late join, left tasks behind"
            assert {tasks.policy_of(child.pid) for child in joiners} == {os.SCHED_OTHER}
    joiners[0].progress()
    joiners[1].wake()
    until(lambda: joiners[1].loops > 0)
    assert sched_ext.status().state == "enabled"


@pytest.mark.soak
def test_end_of_the_last_enclave_and_of_the_core_races_with_joins(
    workload: Workload, enclave: MakeEnclave, rng: Random
) -> None:
    child = workload.spawn(_nap)
    for _ in range(5):
        doomed = enclave("1-2")
        begin = threading.Barrier(2)

        def join(doomed: Enclave = doomed, begin: threading.Barrier = begin) -> None:
            begin.wait()
            with contextlib.suppress(NoSuchEnclave):
                while True:
                    doomed.add(child.pid)

        thread = threading.Thread(target=join)
        thread.start()
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            begin.wait()
            time.sleep(rng.uniform(0, 0.01))
            enclaves.get(doomed.id).destroy()
        thread.join()
        assert sched_ext.status().state == "disabled"
        assert tasks.policy_of(child.pid) == os.SCHED_OTHER
        child.progress()


def _joined(enclave: Enclave, pid: int) -> bool:
    """Whether task ``pid``, or a task that it has forked, is in ``enclave`` and alive."""
    with contextlib.suppress(TaskError):
        enclave.add(pid)
    return bool({task.tid for task in enclave.tasks()})
