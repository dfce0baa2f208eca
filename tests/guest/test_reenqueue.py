# SPDX-License-Identifier: Apache-2.0
"""Tasks on the local queue of a CPU taken by a higher class: the kernel limits how often they are re-enqueued."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import libc, sched_ext
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.registry import POLICIES
from workload import Child, MakeEnclave, Me, Workload, all_cpus

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

CPU = 1
#: Seconds; an earlier core reached the kernel's limit of 256 within 0.7 to 6 s.
SECONDS = 6.0
_FILTERS, _FILTER_LENGTH = 8, 4000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _ADD, _RETURN, _ALLOW = 0x20, 0x04, 0x06, 0x7FFF0000


def filter_each_call() -> None:
    """Install seccomp filters on the calling thread: each system call runs them with migration disabled."""
    # The verdict depends on the first argument; otherwise the kernel caches it for each system call.
    steps = [(_LOAD, 0, 0, 16), *[(_ADD, 0, 0, 1)] * _FILTER_LENGTH, (_RETURN, 0, 0, _ALLOW)]
    code = libc.ffi.from_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    # struct sock_fprog {length, code}
    program = struct.pack("HP", len(steps), int(libc.ffi.cast("uintptr_t", code)))
    for _ in range(_FILTERS):
        libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, libc.ffi.from_buffer(program))


@contextlib.contextmanager
def ping_pong(workload: Workload, priority: int = 0) -> Iterator[list[Child]]:
    """Two tasks of a higher class wake each other on ``CPU`` during the block; with ``priority``, real-time tasks."""
    pipes = [os.pipe(), os.pipe()]

    def play(me: Me, start: bool, source: int, target: int) -> None:
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        if start:
            os.write(target, b"!")
        while not me.stopped and os.read(source, 1):
            os.write(target, b"!")
            me.note()

    pair = [
        workload.spawn(lambda me: play(me, True, pipes[0][0], pipes[1][1]), cpus=[CPU], start=False),
        workload.spawn(lambda me: play(me, False, pipes[1][0], pipes[0][1]), cpus=[CPU], start=False),
    ]
    for child in pair:
        child.wake()
    try:
        yield pair
    finally:
        for child in pair:
            child.kill()
        for end in (end for ends in pipes for end in ends):
            os.close(end)


def watch_core() -> None:
    """Wait for longer than an earlier core survived; AssertionError if the core is ejected."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert sched_ext.status().state == "enabled"
        time.sleep(0.05)


@pytest.mark.kernel_independent
def test_task_in_migrate_disable_beside_ping_pong_does_not_end_the_core(
    workload: Workload, enclave: MakeEnclave
) -> None:
    biff = enclave("1-3")

    def filtered(me: Me) -> None:
        filter_each_call()
        while not me.stopped:
            os.getppid()
            me.note()

    child = workload.spawn(filtered, biff, cpus=[CPU])
    child.progress()
    with ping_pong(workload):
        watch_core()
    child.progress()
    child.stop()


@pytest.mark.kernel_independent
@pytest.mark.own_core
def test_kernel_thread_beside_real_time_ping_pong_does_not_end_the_core(workload: Workload) -> None:
    with Enclaves.create(full=True) as enclaves:
        enclaves.new(all_cpus(), POLICIES["biff"], id=1)

    def have_each_cpu_work(me: Me) -> None:
        while not me.stopped:
            Path("/proc/sys/vm/stat_refresh").write_text("1")
            me.note()

    child = workload.spawn(have_each_cpu_work, cpus=[3])
    child.progress()
    with ping_pong(workload, priority=50):
        watch_core()
    child.progress()
    child.stop()
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(1).destroy()
