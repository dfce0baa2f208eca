# SPDX-License-Identifier: Apache-2.0
"""Real tasks for the guest tier: forked processes that spin, block and yield, and record what they saw.

    child = workload.spinner(enclave)           # forked, put into the enclave, then let go
    until(lambda: child.loops > 1000)
    assert child.cpus_seen <= enclave.cpus      # CPUs it saw itself on, by sched_getcpu()
    child.stop()

A child sets its affinity, then waits at its gate until the test has put it into an enclave and wakes it. It dies
with the test process, and at the latest with its Workload.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from ghostbpf.loaders import libc
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.tasks import SCHED_EXT, policy_of
from ghostbpf.schedulers.topology import Topology

MakeEnclave = Callable[..., Enclave]

#: The policies of tests of the core, which hold for every policy.
EITHER_FIFO = ["biff", pytest.param("rr", marks=pytest.mark.soak)]

#: Seconds; longer than any step takes on a slow machine, so that a timeout means a hang.
DEADLINE = 60.0

_MAX_CHILDREN = 512
_LOOPS, _SEEN, _STOP, _AT, _FREE, _ASKED, _EPOCH = range(7)
_WORDS = 8
getcpu = libc.current_cpu


def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE) -> Any:
    """Poll until ``condition()`` is true; returns its value. AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what or condition}"
        time.sleep(0.005)
    return result


def all_cpus() -> CpuSet:
    """Every online CPU."""
    return Topology.from_sysfs().all_cpus


def present_cpus() -> CpuSet:
    """Every CPU, online or not."""
    return CpuSet.parse(Path("/sys/devices/system/cpu/present").read_text())


def sched_field(tid: int, name: str) -> float:
    """A number from /proc/TID/sched, such as nr_switches or ext.enabled; KeyError if the file has no such line."""
    file = os.open(f"/proc/{tid}/sched", os.O_RDONLY)
    try:
        # One read only: with a thousand threads, each system call is another wait for the interpreter.
        text = os.read(file, 1 << 16).decode()
    finally:
        os.close(file)
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return float(value)
    raise KeyError(name)


def in_ext(tid: int) -> bool:
    """Whether the task is in the ext class now."""
    return sched_field(tid, "ext.enabled") == 1


def ext_tasks() -> dict[int, str]:
    """The command name of each live task whose policy is SCHED_EXT, by tid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/task/*"):
        tid = int(path.name)
        with contextlib.suppress(OSError):
            if policy_of(tid) == SCHED_EXT and state(tid) not in "ZX":
                found[tid] = Path(path, "comm").read_text().strip()
    return found


def runtime_ns(tid: int) -> int:
    """CPU time of one task, as the scheduler accounts it."""
    return int(Path(f"/proc/{tid}/schedstat").read_text().split()[0])


def state(tid: int) -> str:
    """The task's state letter: R, S, D, Z …"""
    return _stat(tid)[0]


def is_off_cpu(tid: int) -> bool:
    """Whether the task sleeps and has left its CPU; /proc/TID/stat says S before that.

    A task that is woken or moved before it has left its CPU never blocks, so its scheduler sees no event.
    """
    # The kernel shows the system call of a sleeping task only when the task has left its CPU.
    return state(tid) == "S" and Path(f"/proc/{tid}/syscall").read_text() != "running\n"


def last_cpu(tid: int) -> int:
    """The CPU of the task, or its last one."""
    return int(_stat(tid)[36])


def _stat(tid: int) -> list[str]:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()


class Me:
    """The argument of a child's body: its words of the shared board, its gate, and the log that all children share."""

    def __init__(self, index: int, board: memoryview, gate: int, log: int) -> None:
        self.index, self._board, self._gate, self._log = index, board, gate, log
        self._base = index * _WORDS

    def note(self) -> None:
        """Count a loop, and record the CPU."""
        if (epoch := self._board[self._base + _ASKED]) != self._board[self._base + _EPOCH]:
            self._board[self._base + _SEEN] = 0
            self._board[self._base + _EPOCH] = epoch
        cpu = getcpu()
        self._board[self._base + _SEEN] |= 1 << cpu
        self._board[self._base + _AT] = cpu
        self._board[self._base + _LOOPS] += 1

    @property
    def stopped(self) -> bool:
        """Whether the test has called stop()."""
        return self._board[self._base + _STOP] != 0

    def set(self, value: int) -> None:
        """Set ``child.value`` for the test."""
        self._board[self._base + _FREE] = value

    @property
    def value(self) -> int:
        """The last value of set(); 0 before."""
        return self._board[self._base + _FREE]

    def block(self) -> None:
        """Sleep until the test calls wake()."""
        os.read(self._gate, 1)

    def log(self, word: object) -> None:
        """Append a line to the log in one system call, so that lines are in the order of the calls."""
        os.write(self._log, f"{self.index} {word}\n".encode())

    def spin(self, ms: float) -> None:
        """Use ``ms`` milliseconds of CPU time of this thread; calls note() at least once."""
        end = time.thread_time_ns() + int(ms * 1e6)
        self.note()
        while time.thread_time_ns() < end:
            self.note()


Body = Callable[[Me], object]


class Child:
    """A forked task, as the test sees it."""

    def __init__(self, index: int, board: memoryview, pid: int, gate: int) -> None:
        self.index, self.pid, self._board, self._gate = index, pid, board, gate
        self._base = index * _WORDS
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<child {self.index}, pid {self.pid}>"

    @property
    def loops(self) -> int:
        """The number of its note() calls."""
        return self._board[self._base + _LOOPS]

    @property
    def at(self) -> int:
        """The CPU of its last note()."""
        return self._board[self._base + _AT]

    @property
    def cpus_seen(self) -> CpuSet:
        """The CPUs of its note() calls since the last forget()."""
        return CpuSet.from_bits(self._board[self._base + _SEEN])

    @property
    def value(self) -> int:
        """The last value of its set(); 0 before."""
        return self._board[self._base + _FREE]

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._poll() is None

    def forget(self, wait: bool = True) -> None:
        """Clear ``cpus_seen`` at its next note(). ``wait`` waits for that, so the task must be running."""
        self._board[self._base + _ASKED] += 1
        asked = self._board[self._base + _ASKED]
        if wait:
            until(lambda: self._board[self._base + _EPOCH] == asked or not self.alive, f"{self} runs")
            self.progress()

    def progress(self, loops: int = 1) -> None:
        """Wait for ``loops`` more note() calls."""
        goal = self.loops + loops
        until(lambda: self.loops >= goal or not self.alive, f"{self} runs")
        assert self.loops >= goal, f"{self} ended: {self._status}"

    def wake(self) -> None:
        """End its block(), or its wait at the gate."""
        os.write(self._gate, b"!")

    def asleep(self) -> Self:
        """Wait until it sleeps, as in block(), and has left its CPU."""
        until(lambda: is_off_cpu(self.pid), f"{self} sleeps")
        return self

    def stop(self, wait: bool = True) -> None:
        """Set ``me.stopped``, and check that it exits with status 0."""
        self._board[self._base + _STOP] = 1
        if wait:
            assert self.wait() == 0

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for its end; returns its exit status, or the negative signal. AssertionError after ``seconds``."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        assert self._status is not None or poll.poll(seconds * 1000), f"{self} did not end within {seconds:.0f} s"
        status = self._poll()
        assert status is not None
        return status

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        if self._poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        """Kill it and its descendants, and close its descriptors."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        os.close(self._pidfd)
        os.close(self._gate)

    def _poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


class Workload:
    """The children of one test."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _MAX_CHILDREN * _WORDS * 8)
        self._board = memoryview(self._memory).cast("Q")
        self._heard, self._log = os.pipe()
        os.set_blocking(self._heard, False)
        self._rest = ""
        self._parent = os.getpid()
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(
        self, body: Body, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, start: bool = True
    ) -> Child:
        """Fork a child, put it into ``enclave``, and let it run ``body`` on ``cpus`` (default: all).

        With ``start=False`` it waits for its first wake(). It exits with 1 if ``body`` raises.
        """
        index = len(self.children)
        assert index < _MAX_CHILDREN
        mask = set(present_cpus() if cpus is None else cpus)
        gate_out, gate_in = os.pipe()
        ready_out, ready_in = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        if not (pid := os.fork()):
            os.close(gate_in)
            me = Me(index, self._board, gate_out, self._log)
            _run(body, me, mask, ready_in, self._parent)
        os.close(gate_out)
        os.close(ready_in)
        child = Child(index, self._board, pid, gate_in)
        self.children.append(child)
        with contextlib.closing(os.fdopen(ready_out, "rb")) as ready:
            assert ready.read(1), f"{child} died before it ran"
        child.asleep()  # a task that joins while it runs stays on its CPU until the next tick
        if enclave is not None:
            enclave.add(child.pid)
        if start:
            child.wake()
        return child

    def spinner(
        self, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, start: bool = True
    ) -> Child:
        """A task that calls note() in a loop, and never blocks, until stop()."""
        return self.spawn(_spin, enclave, cpus=cpus, start=start)

    def napper(
        self,
        enclave: Enclave | None = None,
        *,
        busy_ms: float = 1,
        nap_ms: float = 1,
        cpus: Iterable[int] | None = None,
        start: bool = True,
    ) -> Child:
        """A task that uses ``busy_ms`` of CPU time, with a note() at least, sleeps ``nap_ms``, and repeats that."""
        return self.spawn(lambda me: _nap(me, busy_ms, nap_ms / 1e3), enclave, cpus=cpus, start=start)

    def sleeper(
        self, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, then: Body | None = None
    ) -> Child:
        """A task that blocks; with each wake() it calls ``then`` (default: note()) and blocks again."""
        child = self.spawn(lambda me: _sleep(me, then or Me.note), enclave, cpus=cpus, start=True)
        return child.asleep()

    def crowd(
        self, threads: int, body: Callable[[], object], enclave: Enclave | None = None, *, start: bool = True
    ) -> Child:
        """A process that starts ``threads`` threads; they run ``body`` at the next wake(). ``value`` counts them.

        The process exits with 1 if ``body`` raises in a thread. With ``start=False`` it starts the threads at its first
        wake(), and the threads run ``body`` at the second.
        """
        return self.spawn(lambda me: _crowd(me, threads, body), enclave, start=start)

    def read_log(self) -> list[tuple[int, str]]:
        """The lines of the log since the last call, in order: (index of the child, word)."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._heard, 65536):
                self._rest += chunk.decode()
        *lines, self._rest = self._rest.split("\n")
        return [(int(index), word) for index, _, word in (line.partition(" ") for line in lines)]

    def close(self) -> None:
        """Kill all children, and wait for their end."""
        for child in self.children:
            child.close()
        self.children.clear()
        os.close(self._heard)
        os.close(self._log)


def _run(body: Body, me: Me, mask: set[int], ready: int, parent: int) -> None:
    status = 1
    try:
        # The handlers of the test process must not run in the child.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.set_death_signal(signal.SIGKILL)
        if os.getppid() == parent:
            os.setpgid(0, 0)  # so that its descendants can be killed with it
            os.sched_setaffinity(0, mask)
            os.write(ready, b"!")
            os.close(ready)
            me.block()
            body(me)
            status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _spin(me: Me) -> None:
    while not me.stopped:
        me.note()


def _nap(me: Me, busy_ms: float, nap_s: float) -> None:
    while not me.stopped:
        me.spin(busy_ms)
        time.sleep(nap_s)


def _sleep(me: Me, then: Body) -> None:
    while not me.stopped:
        me.block()
        then(me)


def _crowd(me: Me, threads: int, body: Callable[[], object]) -> None:
    threading.stack_size(128 * 1024)
    # By default, each thread that waits for the interpreter would wake every 5 ms.
    sys.setswitchinterval(DEADLINE)
    gate = threading.Event()

    errors: list[BaseException] = []

    def one() -> None:
        gate.wait()
        try:
            body()
        except BaseException as error:
            errors.append(error)

    started = []
    for _ in range(threads):
        thread = threading.Thread(target=one)
        thread.start()
        started.append(thread)
        me.set(len(started))
    me.block()
    gate.set()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def offline(cpu: int) -> Iterator[None]:
    """Take CPU ``cpu`` offline for the block."""
    set_online(cpu, False)
    try:
        yield
    finally:
        set_online(cpu, True)


def set_online(cpu: int, online: bool) -> None:
    """Take CPU ``cpu`` online or offline."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    if path.read_text().strip() != str(int(online)):
        path.write_text(str(int(online)))
