# SPDX-License-Identifier: Apache-2.0
"""Real tasks for the guest tier: forked processes that spin, block and yield, and tell what they saw.

    child = workload.spinner(enclave)           # forked, put into the enclave, then let go
    until(lambda: child.loops > 1000)
    assert child.cpus_seen <= enclave.cpus      # CPUs it saw itself on, by sched_getcpu()
    child.stop()

A child starts behind a gate: it sets its affinity, waits there, is put where the test wants it, and runs from
then on. It dies with the test process, and at the latest with its Workload.
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

#: For what holds for the core, whichever policy decides.
EITHER_FIFO = ["biff", pytest.param("rr", marks=pytest.mark.soak)]

#: Long enough for any slow machine: reaching it means that something hangs.
DEADLINE = 60.0

_MAX_CHILDREN = 512
_LOOPS, _SEEN, _STOP, _AT, _FREE, _ASKED, _EPOCH = range(7)
_WORDS = 8
getcpu = libc.current_cpu


def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE) -> Any:
    """Poll until ``condition()`` is true, and give what it gave; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what or condition}"
        time.sleep(0.005)
    return found


def all_cpus() -> CpuSet:
    """Every online CPU."""
    return Topology.from_sysfs().all_cpus


def present_cpus() -> CpuSet:
    """Every CPU, online or not."""
    return CpuSet.parse(Path("/sys/devices/system/cpu/present").read_text())


def sched_field(tid: int, name: str) -> float:
    """A number from /proc/TID/sched, such as nr_switches or ext.enabled; KeyError where it is not there."""
    file = os.open(f"/proc/{tid}/sched", os.O_RDONLY)
    try:
        # At one go: where a thousand threads wait for the interpreter, each system call is another wait for it.
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
    """The command name of each task that is in SCHED_EXT by its policy and has not ended, by tid."""
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
    """Whether the task sleeps, and no CPU is still busy with putting it to sleep, as it is when /stat already says S.

    What wakes such a one, or moves it, spares it all that a scheduler is told of.
    """
    # To show in which system call it sleeps, the kernel waits until it has left its CPU.
    return state(tid) == "S" and Path(f"/proc/{tid}/syscall").read_text() != "running\n"


def last_cpu(tid: int) -> int:
    """The CPU the task is on, or was on last."""
    return int(_stat(tid)[36])


def _stat(tid: int) -> list[str]:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()


class Me:
    """What a child's body is given: its place on the board, its gate, and the log all children share."""

    def __init__(self, index: int, board: memoryview, gate: int, log: int) -> None:
        self.index, self._board, self._gate, self._log = index, board, gate, log
        self._base = index * _WORDS

    def note(self) -> None:
        """Count a loop, and the CPU it is on."""
        if (epoch := self._board[self._base + _ASKED]) != self._board[self._base + _EPOCH]:
            self._board[self._base + _SEEN] = 0
            self._board[self._base + _EPOCH] = epoch
        cpu = getcpu()
        self._board[self._base + _SEEN] |= 1 << cpu
        self._board[self._base + _AT] = cpu
        self._board[self._base + _LOOPS] += 1

    @property
    def stopped(self) -> bool:
        """Whether the test asked it to end."""
        return self._board[self._base + _STOP] != 0

    def set(self, value: int) -> None:
        """Show a number to the test, as ``child.value``."""
        self._board[self._base + _FREE] = value

    @property
    def value(self) -> int:
        """The number that set() showed last; 0 at first."""
        return self._board[self._base + _FREE]

    def block(self) -> None:
        """Sleep until the test calls wake()."""
        os.read(self._gate, 1)

    def say(self, word: object) -> None:
        """Append a line to the log, in one system call: lines are in the order they were said."""
        os.write(self._log, f"{self.index} {word}\n".encode())

    def spin(self, ms: float) -> None:
        """Use ``ms`` milliseconds of CPU time of this thread, noting where, at least once."""
        end = time.thread_time_ns() + int(ms * 1e6)
        self.note()
        while time.thread_time_ns() < end:
            self.note()


Body = Callable[[Me], object]


class Child:
    """A forked task, seen from the test."""

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
        """How often it noted a loop."""
        return self._board[self._base + _LOOPS]

    @property
    def at(self) -> int:
        """The CPU of its last loop."""
        return self._board[self._base + _AT]

    @property
    def cpus_seen(self) -> CpuSet:
        """The CPUs it noted since the last forget()."""
        return CpuSet.from_bits(self._board[self._base + _SEEN])

    @property
    def value(self) -> int:
        """What it last showed by set()."""
        return self._board[self._base + _FREE]

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._poll() is None

    def forget(self, wait: bool = True) -> None:
        """Have it start cpus_seen afresh with its next loop, and wait until it did; it must not sleep then."""
        self._board[self._base + _ASKED] += 1
        asked = self._board[self._base + _ASKED]
        if wait:
            until(lambda: self._board[self._base + _EPOCH] == asked or not self.alive, f"{self} makes progress")
            self.progress()

    def progress(self, loops: int = 1) -> None:
        """Wait until it has done so many loops more."""
        goal = self.loops + loops
        until(lambda: self.loops >= goal or not self.alive, f"{self} makes progress")
        assert self.loops >= goal, f"{self} ended: {self._status}"

    def wake(self) -> None:
        """End its block(), or its wait behind the gate."""
        os.write(self._gate, b"!")

    def asleep(self) -> Self:
        """Wait until it sleeps, in block() for one, and is off its CPU."""
        until(lambda: is_off_cpu(self.pid), f"{self} sleeps")
        return self

    def stop(self, wait: bool = True) -> None:
        """Have it end by itself, and check that it ends well."""
        self._board[self._base + _STOP] = 1
        if wait:
            assert self.wait() == 0

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit status (negative: the signal); AssertionError if it does not end."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        assert self._status is not None or poll.poll(seconds * 1000), f"{self} did not end within {seconds:.0f} s"
        status = self._poll()
        assert status is not None
        return status

    def kill(self) -> None:
        """End it by force."""
        if self._poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        """Kill it and all it forked, and forget about it."""
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
        self, body: Body, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, go: bool = True
    ) -> Child:
        """Fork a child that runs ``body`` on ``cpus`` (default: all), put into ``enclave`` before it does.

        With ``go=False`` it waits for its first wake(). Its exit status is 1 where ``body`` raised.
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
        child.asleep()  # or it joins on a CPU that may not be the enclave's, and goes on there until the next tick
        if enclave is not None:
            enclave.add(child.pid)
        if go:
            child.wake()
        return child

    def spinner(self, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, go: bool = True) -> Child:
        """A task that never blocks, until stop(); it notes its CPU all the time."""
        return self.spawn(_spin, enclave, cpus=cpus, go=go)

    def sleeper(
        self, enclave: Enclave | None = None, *, cpus: Iterable[int] | None = None, then: Body | None = None
    ) -> Child:
        """A task blocked on a pipe; with each wake() it does ``then`` (or notes where it is) and blocks again."""
        child = self.spawn(lambda me: _sleep(me, then or Me.note), enclave, cpus=cpus, go=True)
        return child.asleep()

    def crowd(
        self, threads: int, body: Callable[[], object], enclave: Enclave | None = None, *, go: bool = True
    ) -> Child:
        """A process that starts ``threads`` threads; they run ``body`` at the next wake(). ``value`` counts them.

        Where ``body`` raises in one of them, the process ends with status 1.

        With ``go=False`` it starts them at its first wake(), so that the next one lets them run.
        """
        return self.spawn(lambda me: _crowd(me, threads, body), enclave, go=go)

    def said(self) -> list[tuple[int, str]]:
        """Lines of the log since the last call: (index of the child, word), in order."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._heard, 65536):
                self._rest += chunk.decode()
        *lines, self._rest = self._rest.split("\n")
        return [(int(index), word) for index, _, word in (line.partition(" ") for line in lines)]

    def close(self) -> None:
        """Kill all children and wait until they are gone."""
        for child in self.children:
            child.close()
        self.children.clear()
        os.close(self._heard)
        os.close(self._log)


def _run(body: Body, me: Me, mask: set[int], ready: int, parent: int) -> None:
    status = 1
    try:
        # The test's own handlers and pytest's capture are none of the child's business.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.set_death_signal(signal.SIGKILL)
        if os.getppid() == parent:
            os.setpgid(0, 0)  # so that what it forks ends with it
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


def _sleep(me: Me, then: Body) -> None:
    while not me.stopped:
        me.block()
        then(me)


def _crowd(me: Me, threads: int, body: Callable[[], object]) -> None:
    threading.stack_size(128 * 1024)
    # Those that wait for the interpreter sleep until it is free; by default each would wake every 5 ms.
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
    """CPU ``cpu`` unplugged for the block."""
    set_online(cpu, False)
    try:
        yield
    finally:
        set_online(cpu, True)


def set_online(cpu: int, online: bool) -> None:
    """Plug CPU ``cpu`` in or out."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    if path.read_text().strip() != str(int(online)):
        path.write_text(str(int(online)))
