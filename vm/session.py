# SPDX-License-Identifier: Apache-2.0
"""One run of a guest: QEMU, the file servers, the connection to init, and the outcome.

It leaves no names on the host: each connection is an inherited socket, and each child dies with this process.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

from . import init, terminal
from .errors import GuestLost, GuestOops, GuestTimeout, QemuDied
from .machine import Machine, Share, Tools, qemu_argv, virtiofsd_argv

Sink = Callable[[bytes], None]

BOOT_LIMIT = 180.0
_CONSOLE_KEPT = 1 << 18
_CHUNK = 32768
_QEMU_END_S = 5.0
# RCU's thread still sleeps long after its timer has expired: QEMU has lost the timer, and the emulated CPU stalls
# permanently.
_LOST_TIMER = "kthread timer wakeup didn't happen"
_DEATH = re.compile(
    rf"Kernel panic|Oops:|kernel BUG at|general protection fault|{_LOST_TIMER}|"
    r"BUG: (?!workqueue lockup|soft lockup|sleeping function|scheduling while atomic)"
)

_CODE_IS_BREAKPOINT = re.compile(r"Code: [0-9a-f ]*\bcc <")


class Session:
    """A guest that runs one command.

    `setup` are the NAME=VALUE lines for init. `stdin` is a descriptor, or None for an empty one. The sinks get output
    as it arrives. With `terminal`, stdin is a terminal, which is in raw mode while the guest runs.
    """

    def __init__(
        self,
        tools: Tools,
        machine: Machine,
        shares: Sequence[Share],
        setup: Sequence[str],
        *,
        stdin: int | None,
        stdout: Sink,
        stderr: Sink,
        console: Sink | None = None,
        terminal: bool = False,
    ) -> None:
        self._tools, self._machine, self._shares, self._setup = tools, machine, shares, setup
        self._stdin = stdin
        self._sinks = {init.STDOUT: stdout, init.STDERR: stderr}
        self._console_sink = console
        self._terminal = terminal and stdin is not None
        self._console = bytearray()
        self._status: int | None = None
        self._interrupts = 0
        self._begun = False
        self._failure: Exception | None = None
        # Wakes the waiting thread: False when the command starts, True when the guest has ended. A signal handler may
        # put into a SimpleQueue, but not set an Event: its thread may hold the Event's lock.
        self._progress: SimpleQueue[bool] = SimpleQueue()
        self._ready = threading.Event()
        self._io: socket.socket
        self._control: socket.socket

    @property
    def begun(self) -> bool:
        """Whether the command has started."""
        return self._begun

    @property
    def console(self) -> str:
        """What the guest's kernel has printed; at most the last 256 KiB."""
        return self._console.decode(errors="replace").replace("\r", "")

    def run(self, timeout: float | None = None, begin: float | None = None) -> int:
        """Boot, run the command and return its exit status.

        `timeout` in seconds counts from `begin` on the monotonic clock; without it, from the start of QEMU.
        Raises GuestTimeout, GuestOops or GuestLost.
        """
        with ExitStack() as stack:
            stderr = stack.enter_context(tempfile.TemporaryFile())
            child_ends = stack.enter_context(ExitStack())
            own_ends: list[socket.socket] = []
            numbers: list[int] = []
            for _ in range(3):
                ours, theirs = socket.socketpair()
                stack.callback(ours.close)
                child_ends.callback(theirs.close)
                own_ends.append(ours)
                numbers.append(theirs.fileno())
            served = [(s.tag, self._serve(s, stack, child_ends, stderr)) for s in self._shares]
            argv = qemu_argv(
                self._tools, self._machine, console=numbers[0], io=numbers[1], control=numbers[2], shares=served
            )
            inherited = (*numbers, *(fd for _, fd in served))
            qemu = self._child(argv, inherited, stderr, stack)
            child_ends.close()
            console, self._io, self._control = own_ends
            wake_read, wake_write = os.pipe()
            stack.callback(os.close, wake_read)
            threads = [threading.Thread(target=self._read_console, args=(console,), daemon=True)]
            threads += [threading.Thread(target=self._read_frames, daemon=True)]
            threads += [threading.Thread(target=self._write_frames, args=(wake_read,), daemon=True)]
            for thread in threads:
                thread.start()
            try:
                in_time = self._wait(timeout, time.monotonic() if begin is None else begin)
            finally:
                self._ready.set()
                os.close(wake_write)
                if in_time and self._status is None and not _DEATH.search(self.console):
                    # QEMU ends by itself: its status may tell why.
                    with suppress(subprocess.TimeoutExpired):
                        qemu.wait(_QEMU_END_S)
                qemu.kill()
                for end in (self._io, self._control):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    # A thread may be blocked in a write to a pipe without a reader.
                    thread.join(2.0)
            if self._failure is not None:
                raise self._failure
            stderr.seek(0)
            return self._outcome(in_time, timeout, stderr.read().decode(errors="replace"), qemu.wait())

    def interrupt(self, number: int) -> None:
        """Send the command its first SIGINT; a second one, or another signal, ends the guest."""
        self._interrupts += 1
        if number == signal.SIGINT and self._interrupts == 1 and self._begun:
            self.control(f"signal {int(number)}")
        else:
            self._status = 128 + number
            self._progress.put(True)

    def control(self, line: str) -> None:
        """Send init one control line; it is lost if the guest has ended."""
        with suppress(OSError):
            self._control.send(f"{line}\n".encode(), socket.MSG_DONTWAIT)

    def _child(
        self, argv: Sequence[str], inherited: Sequence[int], stderr: IO[bytes], stack: ExitStack
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=inherited,
            # In another session: Ctrl-C is for the command.
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def _serve(self, share: Share, stack: ExitStack, child_ends: ExitStack, stderr: IO[bytes]) -> int:
        # An abstract name that the kernel chooses needs no cleanup.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")
            listener.listen(1)
            self._child(virtiofsd_argv(self._tools, share, listener.fileno()), (listener.fileno(),), stderr, stack)
            client = socket.socket(socket.AF_UNIX)
            child_ends.callback(client.close)
            client.connect(listener.getsockname())
            return client.fileno()

    def _wait(self, timeout: float | None, begin: float) -> bool:
        """Wait for the end of the guest; returns whether it came within `timeout` from `begin` on."""

        def left() -> float | None:
            return None if timeout is None else max(0.0, begin + timeout - time.monotonic())

        with _signals(self), self._raw_terminal(), suppress(Empty):
            limit = left()
            ended = self._progress.get(timeout=BOOT_LIMIT if limit is None else min(limit, BOOT_LIMIT))
            if not ended:
                self._progress.get(timeout=left())
            return True
        return False

    @contextmanager
    def _raw_terminal(self) -> Iterator[None]:
        if not self._terminal or self._stdin is None:
            yield
            return
        with terminal.raw(self._stdin, lambda size: self.control(f"size {size.lines} {size.columns}")):
            yield

    def _read_console(self, source: socket.socket) -> None:
        while data := _receive(source):
            self._console += data
            del self._console[:-_CONSOLE_KEPT]
            if self._console_sink:
                self._console_sink(data)
            if self._machine.accel == "tcg" and _LOST_TIMER.encode() in self._console[-len(data) - len(_LOST_TIMER) :]:
                self._progress.put(True)

    def _read_frames(self) -> None:
        with self._io.makefile("rb", buffering=1 << 17) as stream, suppress(OSError):
            while len(head := stream.read(5)) == 5:
                data = stream.read(int.from_bytes(head[1:], "little"))
                if head[0] == init.READY:
                    self._begun = True
                    self._ready.set()
                    self._progress.put(False)
                elif head[0] == init.STATUS:
                    self._status = int.from_bytes(data, "little")
                    break
                else:
                    self._deliver(head[0], data)
        self._progress.put(True)

    def _deliver(self, kind: int, data: bytes) -> None:
        sink = self._sinks.get(kind)
        if sink is None:
            return
        try:
            sink(data)
        except BrokenPipeError:
            # The reader of the output has closed it: the command gets SIGPIPE, as it would on the host.
            del self._sinks[kind]
            self.control(f"signal {int(signal.SIGPIPE)}")
        except Exception as error:
            # A full disk, or an error of the caller's sink: raise it in the caller's thread after the guest has ended.
            del self._sinks[kind]
            self._failure = error
            self._progress.put(True)

    def _write_frames(self, wake: int) -> None:
        try:
            self._send(init.SETUP, "\0".join(self._setup).encode("utf-8", "surrogateescape"))
            # Input that is read now would be missing from a second attempt if this guest does not boot.
            self._ready.wait()
            if self._stdin is not None and self._begun:
                self._copy_input(self._stdin, wake)
            self._send(init.STDIN_END, b"")
        except OSError:
            # Either the guest has ended, which the reader reports, or stdin is unreadable, which counts as its end.
            with suppress(OSError):
                self._send(init.STDIN_END, b"")

    def _copy_input(self, source: int, wake: int) -> None:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            if wake in [fd for fd, _ in poll.poll()]:
                return
            data = os.read(source, _CHUNK)
            if not data:
                return
            if self._terminal and terminal.ESCAPE in data:
                self.interrupt(signal.SIGTERM)
                return
            self._send(init.STDIN, data)

    def _send(self, kind: int, data: bytes) -> None:
        self._io.sendall(bytes([kind]) + len(data).to_bytes(4, "little") + data)

    def _outcome(self, in_time: bool, timeout: float | None, messages: str, qemu_status: int = 0) -> int:
        if self._status is not None:
            return self._status
        console, limit = self.console, round(timeout or 0, 1)
        death = _DEATH.search(console)
        # A kernel that dies panics; without a panic, a guest that is still running has only printed a warning.
        if death and (in_time or "Kernel panic" in console):
            line = _plain(console[console.rfind("\n", 0, death.start()) + 1 :].partition("\n")[0])
            emulation = _may_be_caused_by_qemu(line, console[death.start() :], self._machine)
            hint = "run it again: QEMU is the likely cause" if emulation else None
            raise GuestOops(f"the guest's kernel died: {line}", hint, console, emulation=emulation)
        if not in_time and timeout is not None and (self._begun or timeout <= BOOT_LIMIT):
            raise GuestTimeout(f"the guest was still running after {limit:g} s", "a longer --timeout", console)
        if not in_time:
            raise GuestLost(
                f"the guest did not boot within {BOOT_LIMIT:g} s",
                "--console shows its kernel's messages",
                console,
                emulation=self._machine.accel == "tcg",
            )
        messages = " ".join(messages.split())
        if -qemu_status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL):
            raise QemuDied(
                f"QEMU died of {signal.Signals(-qemu_status).name}" + (f": {messages}" if messages else ""),
                "run it again",
                console,
                emulation=True,
            )
        raise GuestLost(
            "the guest ended without an exit status" + (f": {messages}" if messages else ""),
            "--console shows its kernel's messages",
            console,
        )


def _may_be_caused_by_qemu(line: str, report: str, machine: Machine) -> bool:
    """Whether TCG may have caused the kernel's death; `line` reports it, `report` is the console from there on."""
    if machine.accel != "tcg":
        return False
    # If the byte before the marked one is still a breakpoint, the kernel did execute it (the padding of freed BPF code,
    # for example), and no stale translation. With one thread for all CPUs, no code is translated while it changes.
    breakpoint_is_gone = _CODE_IS_BREAKPOINT.search(report) is None
    return _LOST_TIMER in line or ("int3" in line and breakpoint_is_gone and not machine.exact)


def _plain(line: str) -> str:
    return re.sub(r"^\[ *[\d.]+\] *", "", line).strip()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(_CHUNK)
    except OSError:
        return b""


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """Pass signals that would end this process to the guest's command first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        session.interrupt(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # A signal that is ignored, as by nohup or in a shell's background, stays ignored.
    before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
