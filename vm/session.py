# SPDX-License-Identifier: Apache-2.0
"""One guest, from its first process to its last: QEMU, the file servers, the wire to the agent, and how it ended.

Nothing of it has a name on the host: every connection is an inherited socket, and every child dies with this process.
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
from .errors import GuestLost, GuestOops, GuestTimeout
from .machine import Machine, Share, Tools, qemu_argv, virtiofsd_argv

Sink = Callable[[bytes], None]

BOOT_LIMIT = 180.0
_CONSOLE_KEPT = 1 << 18
_CHUNK = 32768
# RCU's thread sleeps, off its runqueue, long past the timer that ends its sleep: QEMU has lost that timer, and what the
# emulated CPU was to run stands still for good.
_LOST_TIMER = "kthread timer wakeup didn't happen"
_DEATH = re.compile(
    rf"Kernel panic|Oops:|kernel BUG at|general protection fault|{_LOST_TIMER}|"
    r"BUG: (?!workqueue lockup|soft lockup|sleeping function|scheduling while atomic)"
)

_BREAKPOINT_THERE = re.compile(r"Code: [0-9a-f ]*\bcc <")


class Session:
    """A guest that runs one command.

    `setup` are the agent's NAME=VALUE lines; `stdin` is a descriptor or None for none; the sinks get output as it
    comes. With `terminal`, stdin is one and is put into raw mode while the guest runs.
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
        # What the waiting thread wakes up for: False when the command starts, True when all is over. A signal handler
        # may put into this kind of queue, but not set an Event: its thread may hold the Event's lock.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._ready = threading.Event()
        self._io: socket.socket
        self._control: socket.socket

    @property
    def begun(self) -> bool:
        """Whether the guest came up as far as to start the command."""
        return self._begun

    @property
    def console(self) -> str:
        """What the guest's kernel has printed, or the last 256 KiB of it."""
        return self._console.decode(errors="replace").replace("\r", "")

    def run(self, timeout: float | None = None) -> int:
        """Boot, run the command and return its exit status; `timeout` in seconds counts from the start of QEMU.

        Raises GuestTimeout, GuestOops or GuestLost.
        """
        with ExitStack() as stack:
            complaints = stack.enter_context(tempfile.TemporaryFile())
            far = stack.enter_context(ExitStack())
            near: list[socket.socket] = []
            numbers: list[int] = []
            for _ in range(3):
                ours, theirs = socket.socketpair()
                stack.callback(ours.close)
                far.callback(theirs.close)
                near.append(ours)
                numbers.append(theirs.fileno())
            served = [(s.tag, self._serve(s, stack, far, complaints)) for s in self._shares]
            argv = qemu_argv(
                self._tools, self._machine, console=numbers[0], io=numbers[1], control=numbers[2], shares=served
            )
            inherited = (*numbers, *(fd for _, fd in served))
            qemu = self._child(argv, inherited, complaints, stack)
            far.close()
            console, self._io, self._control = near
            wake_read, wake_write = os.pipe()
            stack.callback(os.close, wake_read)
            threads = [threading.Thread(target=self._read_console, args=(console,), daemon=True)]
            threads += [threading.Thread(target=self._read_wire, daemon=True)]
            threads += [threading.Thread(target=self._write_wire, args=(wake_read,), daemon=True)]
            for thread in threads:
                thread.start()
            try:
                in_time = self._wait(timeout)
            finally:
                self._ready.set()
                os.close(wake_write)
                qemu.kill()
                for end in (self._io, self._control):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    # One may be stuck in a write to a pipe that nobody reads.
                    thread.join(2.0)
            if self._failure is not None:
                raise self._failure
            complaints.seek(0)
            return self._outcome(in_time, timeout, complaints.read().decode(errors="replace"))

    def interrupt(self, number: int) -> None:
        """Send the command a signal; the second SIGINT, and the first of any other kind, ends the guest."""
        self._interrupts += 1
        if number == signal.SIGINT and self._interrupts == 1 and self._begun:
            self.control(f"signal {int(number)}")
        else:
            self._status = 128 + number
            self._news.put(True)

    def control(self, line: str) -> None:
        """Send the agent one control line; lost if the guest has gone."""
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
            # Out of the terminal's reach: Ctrl-C is for the command.
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def _serve(self, share: Share, stack: ExitStack, far: ExitStack, stderr: IO[bytes]) -> int:
        # An abstract name chosen by the kernel: nothing in the file system to clean up.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")
            listener.listen(1)
            self._child(virtiofsd_argv(self._tools, share, listener.fileno()), (listener.fileno(),), stderr, stack)
            client = socket.socket(socket.AF_UNIX)
            far.callback(client.close)
            client.connect(listener.getsockname())
            return client.fileno()

    def _wait(self, timeout: float | None) -> bool:
        """Whether the guest was over within its time."""
        start = time.monotonic()
        with _signals(self), self._raw_terminal(), suppress(Empty):
            over = self._news.get(timeout=BOOT_LIMIT if timeout is None else min(timeout, BOOT_LIMIT))
            if not over:
                self._news.get(timeout=None if timeout is None else max(0.0, start + timeout - time.monotonic()))
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
                self._news.put(True)

    def _read_wire(self) -> None:
        with self._io.makefile("rb", buffering=1 << 17) as stream, suppress(OSError):
            while len(head := stream.read(5)) == 5:
                data = stream.read(int.from_bytes(head[1:], "little"))
                if head[0] == init.READY:
                    self._begun = True
                    self._ready.set()
                    self._news.put(False)
                elif head[0] == init.STATUS:
                    self._status = int.from_bytes(data, "little")
                    break
                else:
                    self._deliver(head[0], data)
        self._news.put(True)

    def _deliver(self, kind: int, data: bytes) -> None:
        sink = self._sinks.get(kind)
        if sink is None:
            return
        try:
            sink(data)
        except BrokenPipeError:
            # Whoever read our output has gone: the command learns it as it would have at home.
            del self._sinks[kind]
            self.control(f"signal {int(signal.SIGPIPE)}")
        except Exception as error:
            # A full disk, or the caller's own: for the thread that called us, once the guest is gone.
            del self._sinks[kind]
            self._failure = error
            self._news.put(True)

    def _write_wire(self, wake: int) -> None:
        try:
            self._send(init.SETUP, "\0".join(self._setup).encode("utf-8", "surrogateescape"))
            # What is read is gone for a second try, should this guest not come up.
            self._ready.wait()
            if self._stdin is not None and self._begun:
                self._copy_input(self._stdin, wake)
            self._send(init.STDIN_END, b"")
        except OSError:
            # Either the guest has gone, which the reader reports, or stdin cannot be read, which is its end.
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

    def _outcome(self, in_time: bool, timeout: float | None, complaints: str) -> int:
        if self._status is not None:
            return self._status
        console, limit = self.console, round(timeout or 0, 1)
        death = _DEATH.search(console)
        # Every death ends in a panic; a guest that still ran has at most complained.
        if death and (in_time or "Kernel panic" in console):
            line = _plain(console[console.rfind("\n", 0, death.start()) + 1 :].partition("\n")[0])
            emulation = _is_of_qemus_making(line, console[death.start() :], self._machine)
            hint = "it again: this is of QEMU's making" if emulation else None
            raise GuestOops(f"the guest's kernel died: {line}", hint, console, emulation=emulation)
        if not in_time and timeout is not None and (self._begun or timeout <= BOOT_LIMIT):
            raise GuestTimeout(f"the guest was still running after {limit:g} s", "a longer --timeout", console)
        if not in_time:
            raise GuestLost(
                f"the guest was not up within {BOOT_LIMIT:g} s",
                "--console, to watch its kernel",
                console,
                emulation=self._machine.accel == "tcg",
            )
        said = " ".join(complaints.split())
        raise GuestLost(
            "the guest went away without an exit status" + (f": {said}" if said else ""),
            "--console, to watch its kernel",
            console,
        )


def _is_of_qemus_making(line: str, report: str, machine: Machine) -> bool:
    """Whether TCG can have caused the death that `line` tells of; `report` is the console from there on."""
    if machine.accel != "tcg":
        return False
    # A breakpoint that is still there, in the byte before the marked one, is no stale translation: the kernel really
    # ran into it, as into the padding of freed BPF code. A machine of one thread translates no code while it changes.
    breakpoint_is_gone = _BREAKPOINT_THERE.search(report) is None
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
    """Let the signals that would end this process reach the guest's command first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        session.interrupt(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # One that is ignored, as by nohup or in a shell's background, stays so.
    before = {n: signal.signal(n, handler) for n in wanted if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
