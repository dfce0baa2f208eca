# SPDX-License-Identifier: Apache-2.0
"""Rules that match tasks, on real tasks, and cgroups."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import libc
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers import cgroups
from ghostbpf.schedulers.processes import ProcTask, Rule, all_tasks
from tracing import Task

KTHREADD = 2
NOBODY = 65534


def named(name: bytes) -> Callable[[], None]:
    return lambda: libc.set_name(name)


@pytest.fixture
def cgroup(root: None) -> Iterator[str]:
    """The directory of a new cgroup with one below it; skip if none can be made."""
    try:
        top = cgroups.mount_point() / f"ghostbpf-test-{os.getpid()}"
        (top / "below").mkdir(parents=True)
    except (GhostError, OSError) as error:
        pytest.skip(f"no cgroup can be made: {error}")
    yield str(top)
    for directory in (top / "below", top):
        directory.rmdir()


def put(pid: int, cgroup: str) -> None:
    Path(cgroup, "cgroup.procs").write_text(str(pid))


@pytest.fixture
def emptied(cgroup: str, task: Callable[..., Task]) -> Iterator[Callable[..., Task]]:
    """``task``, whose tasks end before the cgroup is removed."""
    made: list[Task] = []

    def make(work: Callable[[], object] = lambda: None) -> Task:
        made.append(task(work))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_name_is_the_processs_and_a_glob_of_it_matches(task: Callable[..., Task]) -> None:
    one = task(named(b"abc-[1]\xff"))
    one.run()
    assert ProcTask(one.pid).comm == "abc-[1]\\xff"
    for glob, fits in (("abc*", True), ("a?c-*", True), ("ABC*", False), ("bc*", False), ("abc-[[]1]*", True)):
        assert Rule(comms=(glob,)).fits_now(one.pid) == fits, glob
    assert one.pid in Rule(comms=("zzz", "abc*")).matching()


def test_threads_are_their_processs_whatever_they_are_called(task: Callable[..., Task]) -> None:
    def body() -> None:
        started = threading.Event()

        def thread() -> None:
            named(b"thread-name")()
            started.set()
            threading.Event().wait()

        named(b"process-name")()
        threading.Thread(target=thread, daemon=True).start()
        started.wait()

    one = task(body)
    one.run()
    assert len(matching := Rule(comms=("process-name",)).matching()) == 2
    assert matching == {int(name) for name in os.listdir(f"/proc/{one.pid}/task")}
    assert Rule(comms=("thread-name",)).matching() == set()
    assert matching <= all_tasks()


@pytest.mark.usefixtures("root")
def test_user_is_the_effective_one(task: Callable[..., Task]) -> None:
    one = task(lambda: os.setresuid(0, NOBODY, 0))
    nobody, root = Rule(uids=frozenset([NOBODY])), Rule(uids=frozenset([0]))
    assert (nobody.fits_now(one.pid), root.fits_now(one.pid)) == (False, True)
    one.run()
    assert (nobody.fits_now(one.pid), root.fits_now(one.pid)) == (True, False)


def test_descendants_of_a_parent_match_and_the_parent_does_not(task: Callable[..., Task]) -> None:
    read, write = os.pipe()

    def fork_twice() -> None:
        if not os.fork():
            if not os.fork():
                os.write(write, b"!")
            signal.pause()

    one = task(fork_twice)
    one.run()
    assert os.read(read, 1)
    found = Rule(parents=frozenset([one.pid])).matching()
    try:
        assert len(found) == 2
        assert one.pid not in found
        assert found < Rule(parents=frozenset([os.getpid()])).matching()
    finally:
        for pid in found:
            os.kill(pid, signal.SIGKILL)


def test_task_must_match_every_kind_of_rule(task: Callable[..., Task]) -> None:
    one = task(named(b"abc"))
    one.run()
    uid, other = frozenset([os.geteuid()]), frozenset([12345])
    assert Rule(comms=("abc",), uids=uid, parents=frozenset([os.getpid()])).matching() == {one.pid}
    assert Rule(comms=("abc",), uids=other).matching() == set()
    assert Rule(comms=("abd",), uids=uid).matching() == set()


def test_kernel_threads_and_ended_tasks_do_not_match(task: Callable[..., Task]) -> None:
    one = task(lambda: None)
    assert Rule().fits_now(one.pid)
    one.kill()
    assert not Rule().fits_now(one.pid)
    if not (pid := os.fork()):
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not Rule().fits_now(pid), "a zombie counts as ended"
    assert pid in all_tasks()
    os.waitpid(pid, 0)
    if Path(f"/proc/{KTHREADD}/comm").read_text() == "kthreadd\n":
        assert not Rule().fits_now(KTHREADD)


def test_cgroup_and_those_below(cgroup: str, emptied: Callable[..., Task]) -> None:
    top, below, outside = emptied(), emptied(), emptied()
    put(top.pid, cgroup)
    put(below.pid, f"{cgroup}/below")
    assert cgroups.tasks(cgroup) == {top.pid, below.pid}
    assert Rule(cgroups=(cgroup,)).matching() == {top.pid, below.pid}
    assert Rule(cgroups=(f"{cgroup}/below",)).matching() == {below.pid}
    assert not Rule(cgroups=(cgroup[:-1],)).fits_now(top.pid), "a prefix of the name does not match"
    assert not Rule(cgroups=(cgroup,)).fits_now(outside.pid)
    assert Rule(cgroups=(str(cgroups.mount_point()),)).fits_now(outside.pid)


def test_cgroup_that_is_not_there_has_no_tasks_and_is_named(cgroup: str) -> None:
    assert cgroups.tasks(f"{cgroup}/none") == set()
    assert not cgroups.exists(f"{cgroup}/none")
    with pytest.raises(cgroups.NoSuchCgroup, match=f"there is no cgroup {cgroup}/none"):
        cgroups.find(f"{cgroup}/none")
    for path in ("/tmp", "/proc/self", "/etc/passwd", ""):
        assert not cgroups.exists(path), path
    with pytest.raises(cgroups.NoSuchCgroup, match="there is no cgroup /proc/self"):
        cgroups.find("/proc/self")


def test_cgroup_is_found_by_its_directory_and_by_its_name(cgroup: str) -> None:
    name = Path(cgroup).name
    for path in (cgroup, f"{cgroup}/", f"{cgroup}/below/..", name, f"/{name}", f"{name}/"):
        assert cgroups.find(path) == cgroup, path
    assert cgroups.find("/") == cgroups.find(str(cgroups.mount_point())) == str(cgroups.mount_point())
    assert cgroups.directory_of(f"{name}/yet/to/come") == f"{cgroup}/yet/to/come"
