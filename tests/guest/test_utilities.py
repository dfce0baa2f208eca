# SPDX-License-Identifier: Apache-2.0
"""The utilities: tasks moved to any class, cgroups and matching tasks added to an enclave, and maps passed on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import MakeAgentProcess
from command import Running, fork, ghostbpf, nobody, running
from ghostbpf.loaders import libc
from ghostbpf.loaders.descriptors import Offer, receive
from ghostbpf.loaders.handle import open_pinned
from ghostbpf.loaders.maps import Map, MmapArray
from ghostbpf.schedulers import cgroups, core, tasks
from ghostbpf.schedulers.agents import AgentPolicySpec
from ghostbpf.schedulers.auto_join import AutoJoin, Outcome
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import TaskError
from ghostbpf.schedulers.process_events import ProcessEvents
from ghostbpf.schedulers.processes import Rule
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import AgentProcess
from workload import Child, MakeEnclave, Me, Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

KTHREADD = 2
BY_NAME = Rule(comms=("enrol-*",))


def rename(name: str) -> None:
    libc.set_name(name.encode())


def take_name(me: Me) -> None:
    """Set the name that the rule matches, and sleep; with each later wake(), fork a child with another name."""
    rename("enrol-me")
    me.set(1)
    while True:
        me.block()
        if not (pid := os.fork()):
            rename("other")
            me.set(os.getpid())
            signal.pause()
        del pid


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def stdin(*lines: object) -> Callable[[], None]:
    """For ``first``: ``text`` as the standard input."""

    def first() -> None:
        fd = os.memfd_create("stdin")
        os.write(fd, "".join(f"{line}\n" for line in lines).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, 0)

    return first


def put(child: Child, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(child.pid))


def breed(me: Me) -> None:
    """Fork a child that ends, in a loop."""
    while not me.stopped:
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
        me.note()


def test_push_into_an_enclave_and_back(workload: Workload, enclave: MakeEnclave) -> None:
    e, other = enclave("1-2"), enclave("3")
    spinner, sleeper, there, elsewhere = (
        workload.spinner(),
        workload.sleeper(),
        workload.sleeper(e),
        workload.sleeper(other),
    )
    os.sched_setscheduler(sleeper.pid, os.SCHED_FIFO, os.sched_param(3))
    dead = workload.spawn(lambda me: None)
    assert dead.wait() == 0
    ours = (spinner, sleeper, there, elsewhere)
    tids = [*(child.pid for child in ours), dead.pid]
    done = ghostbpf("pushtosched", "ext", "--enclave", e.id, "--json", first=stdin(*tids))
    assert (done.status, done.err) == (0, "")
    assert [(row["tid"], row["result"], row["before"]) for row in rows(done.out)] == [
        (spinner.pid, "moved", "other"),
        (sleeper.pid, "moved", "fifo:3"),
        (there.pid, "there", "ext"),
        (elsewhere.pid, "moved", "ext"),
        (dead.pid, "died", None),
    ]
    assert {task.tid for task in e.tasks()} == {child.pid for child in ours}
    spinner.progress()
    for target, policy in (("fifo:1", os.SCHED_FIFO), ("other", os.SCHED_OTHER)):
        done = ghostbpf("pushtosched", target, first=stdin(*tids))
        assert (done.status, done.err) == (0, "4 moved, 0 there, 1 died, 0 failed\n")
        assert [os.sched_getscheduler(child.pid) for child in ours] == [policy] * 4
        assert e.nr_tasks == other.nr_tasks == 0
        spinner.progress()


def test_push_of_a_kernel_thread_fails_and_the_others_move(workload: Workload, enclave: MakeEnclave) -> None:
    e, sleeper = enclave("1"), workload.sleeper()
    done = ghostbpf("pushtosched", "ext", "--enclave", e.id, first=stdin(KTHREADD, "x", sleeper.pid))
    assert done.status == 1
    assert done.out == f"{sleeper.pid}: moved from other\n"
    assert done.err.splitlines() == [
        f"failed: cannot move task {KTHREADD}: it is a kernel thread",
        'failed: line 2: "x" is no TID',
        "1 moved, 0 there, 0 died, 2 failed",
    ]
    assert in_ext(sleeper.pid)


def test_cgroup_joins_with_all_below_while_they_fork(workload: Workload, enclave: MakeEnclave, cgroup: Path) -> None:
    e = enclave("1-2")
    parents = [workload.spawn(breed) for _ in range(2)]
    crowd, outside = workload.crowd(20, lambda: None), workload.sleeper()
    until(lambda: crowd.value == 20, "all threads have started")
    put(parents[0], cgroup)
    for child in (parents[1], crowd):
        put(child, cgroup / "below")
    for parent in parents:
        parent.progress()
    done = ghostbpf("enclave", "add", e.id, "--cgroup", f"/{cgroup.name}")
    assert done.status == 0
    joined = int(done.err.split()[0])
    assert done.err == f"{joined} tasks joined enclave {e.id}\n"
    assert len(done.out.splitlines()) == joined >= 23
    for _ in range(20):
        members = cgroups.tasks(cgroups.find(str(cgroup)))
        inside = {task.tid for task in e.tasks()}
        assert not {tid for tid in members - inside if tasks.policy_of(tid) not in (tasks.SCHED_EXT, None)}
        assert outside.pid not in inside
        parents[0].progress()
    assert tasks.threads(crowd.pid) <= {task.tid for task in e.tasks()}
    for parent in parents:
        parent.stop()
    crowd.wake()
    assert crowd.wait() == 0


def test_cgroup_is_followed_until_ctrl_c(workload: Workload, enclave: MakeEnclave, cgroup: Path) -> None:
    e = enclave("1-2")
    first, later = workload.sleeper(), workload.sleeper()
    put(first, cgroup)
    with running("enclave", "add", e.id, "--cgroup", f"/{cgroup.name}", "--follow") as daemon:
        daemon.until(lambda: f"{first.pid} " in daemon.out)
        assert in_ext(first.pid)
        put(later, cgroup / "below")
        daemon.until(lambda: f"{later.pid} " in daemon.out)
        assert in_ext(later.pid)
        daemon.signal(signal.SIGINT)
        done = daemon.wait()
    assert done.status == 0
    assert done.err.endswith(f"2 tasks joined enclave {e.id}\n")
    assert "Traceback" not in done.err
    assert {task.tid for task in e.tasks()} == {first.pid, later.pid}


def test_cgroup_that_does_not_exist_is_refused(enclave: MakeEnclave, cgroup: Path) -> None:
    e = enclave("1")
    done = ghostbpf("enclave", "add", e.id, "--cgroup", f"/{cgroup.name}/none")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"error: there is no cgroup /{cgroup.name}/none\n  try: ")


def joined(daemon: Running, child: Child) -> str:
    """Wait until the daemon reports that ``child`` has joined; returns the cause."""

    def row() -> list[dict[str, Any]]:
        return [row for row in rows(daemon.out) if row["tid"] == child.pid]

    daemon.until(lambda: bool(row()))
    assert in_ext(child.pid)
    return str(row()[0]["cause"])


def exec_by_name(path: Path) -> Callable[[Me], None]:
    path.symlink_to("/bin/sleep")
    return lambda me: os.execv(path, [path.name, "1000"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_rule_adds_present_and_later_tasks(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path, number: int
) -> None:
    e = enclave("1-2")
    before, outside = workload.spawn(take_name), workload.sleeper()
    until(lambda: before.value, "it has set its name")
    with running("enclave", "auto-join", e.id, "--comm", "enrol-*", "--uid", "root", "--json") as daemon:
        assert joined(daemon, before) == "scan"
        assert joined(daemon, workload.spawn(take_name)) in ("fork", "comm")
        assert joined(daemon, workload.spawn(exec_by_name(tmp_path / "enrol-program"))) in ("fork", "exec", "comm")
        before.wake()
        until(lambda: before.value > 1 and in_ext(before.value), "its child joins under another name")
        daemon.signal(number)
        done = daemon.wait()
    assert done.status == (0 if number == signal.SIGTERM else 128 + number)
    # The daemon has ended: no task joins or leaves.
    late = workload.spawn(take_name)
    until(lambda: late.value, "it has set its name")
    assert not in_ext(late.pid)
    assert not in_ext(outside.pid)
    assert e.nr_tasks == 4
    spinner = workload.spinner(e)
    spinner.progress()
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(e.id).destroy()
    assert not in_ext(before.pid)


def test_end_of_the_enclave_ends_the_daemon(enclave: MakeEnclave) -> None:
    e, _other = enclave("1"), enclave("2")
    with running("enclave", "auto-join", e.id, "--comm", "enrol-*", "--period", "50ms") as daemon:
        daemon.until(lambda: "Ctrl-C ends" in daemon.err)
        assert ghostbpf("enclave", "destroy", e.id).status == 0
        done = daemon.wait()
    assert done.status == 1
    assert f"error: there is no enclave {e.id}" in done.err


def test_lost_events_cause_a_scan(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1-2")
    with ProcessEvents(buffer_bytes=4096) as events:
        auto_join = AutoJoin(e, BY_NAME, events)
        assert list(auto_join.scan()) == []
        children = [workload.spawn(take_name) for _ in range(30)]
        until(lambda: all(child.value for child in children), "all have set their names")
        outcomes = list(auto_join.handle())
        assert auto_join.resyncs == 1
        assert {outcome.tid for outcome in outcomes} == {child.pid for child in children}
        assert "resync" in {outcome.cause for outcome in outcomes}
        assert {task.tid for task in e.tasks()} == {child.pid for child in children}
        # From here on, no event is lost.
        last = workload.spawn(take_name)
        until(lambda: last.value, "it has set its name")
        until(lambda: last.pid in {outcome.tid for outcome in auto_join.handle()}, "it joins")


def test_child_forked_while_its_parent_joins_is_in_the_enclave(workload: Workload, enclave: MakeEnclave) -> None:
    """Such a child is in the class that its parent had, like the child of a task that was removed."""
    e = enclave("1-2")
    parent, departed = workload.spawn(take_name), workload.spawn(take_name)
    until(lambda: parent.value and departed.value, "both have set their names")
    with ProcessEvents() as events:
        auto_join = AutoJoin(e, BY_NAME, events)
        assert {outcome.tid for outcome in auto_join.scan()} == {parent.pid, departed.pid}
        e.remove(departed.pid)
        for one in (parent, departed):
            one.wake()
            until(lambda one=one: one.value > 1, "it has a child")
        tasks.set_policy(parent.value, os.SCHED_OTHER)
        found: list[Outcome] = []
        until(lambda: found.extend(auto_join.handle()) or parent.value in {one.tid for one in found}, "it joins")
        assert in_ext(parent.value)
        assert not in_ext(departed.value), "the child of a removed task does not join"


def test_without_events_scans_find_new_tasks(workload: Workload, enclave: MakeEnclave) -> None:
    e, stop = enclave("1-2"), os.eventfd(0)
    outcomes = AutoJoin(e, BY_NAME, period=0.02).follow(stop)
    for _ in range(2):
        child = workload.spawn(take_name)
        assert (outcome := next(outcomes)) == Outcome(child.pid, child.pid, "enrol-me", "scan")
        assert in_ext(outcome.tid)
    os.eventfd_write(stop, 1)
    assert list(outcomes) == []
    os.close(stop)


def test_agents_do_not_join_the_enclave_that_they_schedule(
    workload: Workload, enclave: MakeEnclave, agent_process: MakeAgentProcess
) -> None:
    e, agent = agent_process("1-2", "fifo_centralized")
    child = workload.sleeper()
    done = ghostbpf("enclave", "auto-join", e.id, "--parent", os.getpid(), "--once", "--json")
    assert done.status == 0
    assert [row["tid"] for row in rows(done.out)] == [child.pid]
    assert not in_ext(agent.pid)
    # A task in an enclave leaves it when it becomes an agent.
    half = POLICIES["fifo_centralized"]
    assert isinstance(half, AgentPolicySpec)
    second = AgentProcess(half.parse())
    try:
        e.add(second.pid)
        second.take_over(e)
        assert not in_ext(second.pid)
        assert [task.tid for task in e.tasks()] == [child.pid]
    finally:
        second.end()


def test_task_joins_as_soon_as_its_pid_is_visible(workload: Workload, enclave: MakeEnclave) -> None:
    """A task is visible before fork() has prepared its class; the kernel would log an error."""
    e, parent = enclave("1-2"), workload.spawn(breed)
    caught: set[int] = set()

    def catch_next_child() -> None:
        child = int(Path("/proc/loadavg").read_text().split()[-1]) + 1
        for _ in range(500):
            with contextlib.suppress(TaskError):
                e.add(child)
                caught.add(child)
                return

    until(lambda: catch_next_child() or len(caught) >= 50, "children join")
    assert not in_ext(parent.pid)
    parent.stop()


def test_offered_map_reaches_a_user_without_access_to_its_pin(enclave: MakeEnclave) -> None:
    e = enclave("1")
    path = core.CORE / "enclaves"

    def look(offer: Offer) -> None:
        assert not os.access(path, os.F_OK)
        with MmapArray(Map(receive(offer.address, offer.nonce, 60)), core.ffi(), "struct enclave") as enclaves:
            print(core.text(enclaves[e.id].policy[0]))

    with Offer(open_pinned(path)) as offer:
        user = fork(lambda: look(offer), first=nobody)
        assert offer.serve(60) == user.pid
    done = user.wait()
    assert (done.status, done.out, done.err) == (0, "biff\n", "")
