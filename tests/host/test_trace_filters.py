# SPDX-License-Identifier: Apache-2.0
"""Filters and breakdowns: tasks that match beside tasks that do not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers import cgroups
from tracing import Task, Traced, ghostbpf_trace, run_together, tracing

NAPS = 10


def nap() -> None:
    for _ in range(NAPS):
        time.sleep(0.002)


def nap_in_threads() -> None:
    def work() -> None:
        Path("/proc/thread-self/comm").write_text("worker")
        nap()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def pair(task: Callable[..., Task], cpus: list[int]) -> list[Task]:
    """Two tasks with the same work, on different CPUs and with different names."""
    return [task(nap, cpu=cpus[0], name="wanted"), task(nap, cpu=cpus[1], name="unwanted")]


@pytest.fixture
def cgroup(root: None) -> Iterator[Path]:
    """A new cgroup with one below it."""
    try:
        hierarchy = cgroups.mount_point()
    except GhostError as error:
        pytest.skip(str(error))
    group = hierarchy / f"ghostbpf-test-{os.getpid()}"
    try:
        (group / "inner").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    yield group
    for one in (group / "inner", group):
        for pid in (one / "cgroup.procs").read_text().split():
            (hierarchy / "cgroup.procs").write_text(pid)
        one.rmdir()


def tids(traced: Traced) -> set[int]:
    return {line["by"]["tid"] for line in traced}


@pytest.mark.parametrize("tool", ["runqlat", "cpudist", "schedrun", "schedlat"])
@pytest.mark.parametrize("option", ["-p", "-t"])
def test_only_the_task_that_is_named_is_seen(pair: list[Task], tool: str, option: str) -> None:
    wanted = pair[0]
    with tracing(tool, "-L", option, wanted.pid) as traced:
        run_together(pair)
    assert tids(traced) == {wanted.pid}


def test_only_tasks_of_the_name_are_seen(pair: list[Task]) -> None:
    with tracing("runqlat", "-L", "-c", "wanted") as traced, tracing("runqlat", "-L", "-c", "want") as none:
        run_together(pair)
    assert tids(traced) == {pair[0].pid}
    assert list(none) == []
    assert 'no event of a task named "want" ' in none.stderr


def test_name_of_fifteen_characters_is_told_from_one_that_begins_like_it(task: Callable[..., Task]) -> None:
    names = ["abcdefghijklmno", "abcdefghijklmn", "abcdefgh"]
    tasks = [task(nap, name=name) for name in names]
    with contextlib.ExitStack() as stack:
        traces = [stack.enter_context(tracing("runqlat", "-L", "-c", name)) for name in names]
        run_together(tasks)
    assert [tids(traced) for traced in traces] == [{one.pid} for one in tasks]


@pytest.mark.parametrize("is_relative", [False, True], ids=["absolute", "relative"])
def test_only_tasks_below_the_cgroup_are_seen(pair: list[Task], cgroup: Path, is_relative: bool) -> None:
    (cgroup / "inner" / "cgroup.procs").write_text(str(pair[0].pid))
    path = cgroup.name if is_relative else cgroup
    with tracing("runqlat", "-L", "--cgroup", path) as traced:
        run_together(pair)
    assert tids(traced) == {pair[0].pid}


def test_cgroup_is_found_where_a_part_is_mounted(pair: list[Task], cgroup: Path, tmp_path: Path) -> None:
    (cgroup / "inner" / "cgroup.procs").write_text(str(pair[0].pid))
    subprocess.run(["mount", "--bind", cgroup, tmp_path], check=True)
    try:
        with tracing("runqlat", "-L", "--cgroup", tmp_path / "inner") as traced:
            run_together(pair)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert tids(traced) == {pair[0].pid}


def test_tasks_above_the_cgroup_are_not_seen(pair: list[Task], cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(pair[0].pid))
    with tracing("runqlat", "-L", "--cgroup", cgroup / "inner") as traced:
        run_together(pair)
    assert list(traced) == []
    assert f"no event of a task in or below {cgroup / 'inner'}" in traced.stderr


def test_root_of_the_cgroups_has_all_tasks(pair: list[Task], cgroup: Path) -> None:
    with tracing("runqlat", "-L", "--cgroup", cgroup.parent) as traced:
        run_together(pair)
    assert {one.pid for one in pair} <= tids(traced)


@pytest.mark.parametrize("tool", ["runqlat", "cpudist", "schedrun", "schedlat"])
def test_only_what_happens_on_the_cpu_is_seen(pair: list[Task], cpus: list[int], tool: str) -> None:
    with tracing(tool, "-L", "-C", cpus[0]) as traced:
        run_together(pair)
    assert pair[0].pid in tids(traced)
    assert pair[1].pid not in tids(traced)


def test_filters_must_all_match(pair: list[Task], cpus: list[int]) -> None:
    with (
        tracing("runqlat", "-L", "-c", "wanted", "-C", cpus[0], "-p", pair[0].pid) as traced,
        tracing("runqlat", "-L", "-c", "wanted", "-C", cpus[1], "-p", pair[0].pid) as none,
    ):
        run_together(pair)
    assert tids(traced) == {pair[0].pid}
    assert list(none) == []


def test_threads_are_broken_down_or_added_up(task: Callable[..., Task], cpus: list[int]) -> None:
    process = task(nap_in_threads, cpu=cpus[0], name="threaded")
    with (
        tracing("runqlat", "-L", "-p", process.pid) as by_thread,
        tracing("runqlat", "-P", "-p", process.pid) as by_process,
        tracing("runqlat", "--per-cpu", "-p", process.pid) as by_cpu,
        tracing("runqlat", "-p", process.pid) as whole,
        tracing("runqlat", "-t", process.pid) as leader,
    ):
        process.run()
    assert sorted(line["by"]["comm"] for line in by_thread) == ["threaded", "worker", "worker"]
    assert [line["by"] for line in by_process] == [{"pid": process.pid, "comm": "threaded"}]
    assert [line["by"] for line in by_cpu] == [{"cpu": cpus[0]}]
    assert [line["by"] for line in whole] == [{}]
    # Each breakdown has the same total.
    assert whole.count() == sum(line["count"] for line in by_thread) == by_process.count() == by_cpu.count()
    assert leader.count() == by_thread.count(tid=process.pid)


def test_tasks_that_are_broken_down_are_labelled_in_text(pair: list[Task]) -> None:
    command = ghostbpf_trace("runqlat", "-P", "-c", "wanted")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Tracing")
        run_together(pair)
        process.terminate()
        out, _ = process.communicate()
    assert process.returncode == 0
    assert out.splitlines()[:2] == [
        f"pid = {pair[0].pid} wanted",
        "     usecs               : count     distribution",
    ]


def test_histograms_of_one_owner_stand_together(pair: list[Task]) -> None:
    with tracing("schedrun", "-L", "-c", "wanted") as traced:
        run_together(pair)
    assert [line["name"] for line in traced if line["by"]["tid"] == pair[0].pid] in (
        ["blocked", "all"],
        ["preempted", "blocked", "all"],
    )
