# SPDX-License-Identifier: Apache-2.0
"""The kernel's process events for real processes."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from ghostbpf.loaders import libc
from ghostbpf.loaders.errors import GhostError, KernelUnsupported, PermissionMissing
from ghostbpf.schedulers.process_events import ProcessEvent, ProcessEvents
from tracing import DEADLINE

_NAME = b"\xff\xfe not UTF-8"


@pytest.fixture
def events() -> Iterator[ProcessEvents]:
    """The events from now on; skip if the kernel reports none."""
    try:
        with ProcessEvents() as listening:
            yield listening
    except (KernelUnsupported, PermissionMissing) as error:
        pytest.skip(str(error))


def child(body: Callable[[], object]) -> int:
    """Run ``body`` in a child to its end; returns its pid."""
    if not (pid := os.fork()):
        try:
            body()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def until_exit(events: ProcessEvents, pid: int) -> tuple[list[ProcessEvent], bool]:
    """The events up to the end of ``pid``, and whether events were lost."""
    found: list[ProcessEvent] = []
    lost, deadline = False, time.monotonic() + DEADLINE
    while not any(event.kind == "exit" and event.tid == pid for event in found):
        assert time.monotonic() < deadline, "its end is reported"
        select.select([events], [], [], 1)
        more, missed = events.read()
        found, lost = found + more, lost or missed
    return found, lost


def rename_and_exec() -> None:
    libc.set_name(_NAME)
    os.execvp("true", ["true"])


def test_events_of_a_process_are_reported_in_order(events: ProcessEvents) -> None:
    before = time.monotonic_ns()
    pid = child(rename_and_exec)
    after = time.monotonic_ns()
    found, lost = until_exit(events, pid)
    ours = [event for event in found if event.pid == pid]
    assert [event.kind for event in ours] == ["fork", "comm", "exec", "exit"]
    assert ours[0] == ProcessEvent("fork", pid, pid, ours[0].at_ns, parent=threading.get_native_id())
    assert [before, *(event.at_ns for event in ours), after] == sorted(
        [before, *(event.at_ns for event in ours), after]
    )
    assert not lost


@pytest.mark.usefixtures("root")
def test_new_thread_and_new_user_are_reported(events: ProcessEvents) -> None:
    def body() -> None:
        thread = threading.Thread(target=lambda: os.setresuid(65534, 65534, 65534))
        thread.start()
        thread.join()

    pid = child(body)
    found, _ = until_exit(events, pid)
    forks = [event for event in found if event.kind == "fork" and event.pid == pid]
    assert [(event.tid == pid, event.parent) for event in forks] == [(True, threading.get_native_id()), (False, pid)]
    assert [event.tid for event in found if event.kind == "uid" and event.pid == pid], "the user"


def test_loss_is_reported_as_soon_as_possible_and_later_events_arrive(events: ProcessEvents) -> None:
    with ProcessEvents(buffer_bytes=4096) as small:
        for _ in range(50):
            child(lambda: None)
        assert select.select([small], [], [], DEADLINE)[0]
        found, lost = small.read()
        assert lost
        assert 0 < len(found) < 100
        last = child(lambda: None)
        ours = [event.kind for event in until_exit(small, last)[0] if event.pid == last]
        assert ours == ["fork", "exit"]
    _, lost = events.read()
    assert not lost, "a reader with room loses nothing"


@pytest.fixture
def one_cpu(cpus: list[int]) -> Iterator[None]:
    """Bind this process, and the processes that it starts, to one CPU."""
    os.sched_setaffinity(0, cpus[:1])
    yield
    os.sched_setaffinity(0, cpus)


@pytest.mark.usefixtures("one_cpu")
def test_gap_in_what_a_cpu_counts_is_a_loss(events: ProcessEvents) -> None:
    child(lambda: None)
    events.read()
    for cpu in events._next:
        events._next[cpu] -= 1
    child(lambda: None)
    found, lost = events.read()
    assert lost
    assert found


@pytest.mark.usefixtures("root")
def test_unprivileged_user_may_listen_or_gets_an_error_that_names_the_capability() -> None:
    read, write = os.pipe()

    def body() -> None:
        os.setresuid(65534, 65534, 65534)
        try:
            ProcessEvents().close()
            os.write(write, b"listens")  # newer kernels let anyone
        except GhostError as error:
            os.write(write, type(error).__name__.encode())

    child(body)
    os.close(write)
    with open(read) as answer:
        assert answer.read() in ("listens", PermissionMissing.__name__)
