# SPDX-License-Identifier: Apache-2.0
"""The guest's init process: it sets the guest up, runs one command, and sends its output and exit status to the host.

It is copied into the guest and runs there with the guest's python3. It imports only the standard library (ctypes, not
cffi), and little of it (`_signal`, not `signal`), because each import costs tens of milliseconds under emulation.

`session.py` is its peer on the host; two virtio-serial ports connect them. `ghostbpf.io` carries frames in both
directions: a kind (one byte), a length (four bytes, little-endian) and that many bytes. Output and exit status share
one stream, so the host receives them in order. On `ghostbpf.ctl` the host sends control lines, which arrive even if the
command reads no input.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import _thread
import ctypes
import fcntl
import os
import resource
import select
import sys
import termios
import time

# Frames to the host.
STDOUT, STDERR, STATUS, READY = 1, 2, 3, 4
# Frames to the guest.
SETUP, STDIN, STDIN_END = 16, 17, 18

IO_PORT, CONTROL_PORT = "ghostbpf.io", "ghostbpf.ctl"
STATE = "/var/lib/ghostbpf"
LIBRARY = "/opt/ghostbpf"
HEADERS = "/run/ghostbpf/headers"

_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_MCL_CURRENT = 1
_CHUNK = 32768

_MOUNTS = (
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/root", "mode=0700"),
    ("tmpfs", "/var/tmp", "mode=1777"),
    ("bpf", "/sys/fs/bpf", "mode=0700"),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("debugfs", "/sys/kernel/debug", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/usr/local/sbin", "mode=0755"),
)
#: The guest has only root, and no sudo: this lets command lines with sudo run as they are.
_SUDO = '#!/bin/sh\nexec "$@"\n'
_SYSCTLS = (
    # Autogroups would give all tasks of one session the weight of one task.
    ("kernel/sched_autogroup_enabled", "0"),
    ("kernel/perf_event_paranoid", "-1"),
    ("kernel/kptr_restrict", "0"),
    # Under emulation a task can be delayed for long because the host is busy.
    ("kernel/hung_task_timeout_secs", "0"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def _lock_memory() -> None:
    """Keep this process's memory resident: during power-off the root file system is gone before this process ends."""
    _libc.mlockall(_MCL_CURRENT)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind} on {target}: {os.strerror(code)}")


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _become_realtime() -> None:
    # The scheduler under test must not starve the threads that report on it. The command does not inherit the class.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _open_port(name: str) -> int:
    home = "/sys/class/virtio-ports"
    for _ in range(500):
        for port in os.listdir(home):
            try:
                with open(f"{home}/{port}/name", encoding="utf-8") as file:
                    if file.read().strip() == name:
                        return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
        # The device announces its ports one by one after it has been probed.
        time.sleep(0.01)
    raise OSError(f"no virtio port {name}")


class Wire:
    """Frames on the io port; any thread may call `send`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = _thread.allocate_lock()

    def send(self, kind: int, data: bytes) -> None:
        """Send one frame; blocks while the host does not read. Raises EOFError if the port is closed."""
        rest = memoryview(bytes([kind]) + len(data).to_bytes(4, "little") + data)
        with self._lock:
            while rest:
                written = os.write(self._fd, rest)
                if not written:
                    raise EOFError
                rest = rest[written:]

    def receive(self) -> tuple[int, bytes]:
        """The next frame; raises EOFError if the host has closed the port."""
        head = self._exactly(5)
        return head[0], self._exactly(int.from_bytes(head[1:], "little"))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._fd, count)
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Pump:
    """A thread that sends what it reads from `fd` to the host, as frames of `kind`."""

    def __init__(self, wire: Wire, fd: int, kind: int) -> None:
        self._wire, self._fd, self._kind = wire, fd, kind
        self._busy = False
        self._ended = False
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        _become_realtime()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            poll.poll()
            self._busy = True
            try:
                data = os.read(self._fd, _CHUNK)
            except OSError:
                # Reading a terminal's master fails with EIO after the last process has closed the slave.
                data = b""
            if not data:
                self._ended = True
                return
            try:
                self._wire.send(self._kind, data)
            except EOFError:
                return
            self._busy = False

    @property
    def drained(self) -> bool:
        """Whether the host has all output so far; a process left behind may keep `fd` open for ever."""
        if self._ended:
            return True
        if self._busy:
            return False
        waiting = fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(waiting, "little") == 0


def _set_up_system() -> None:
    for kind, target, data in _MOUNTS:
        if target.startswith("/dev/"):
            os.makedirs(target, exist_ok=True)
        _mount(kind, target, kind, 0, data)
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"/dev/{link}")
    with open("/usr/local/sbin/sudo", "w", encoding="utf-8") as file:
        file.write(_SUDO)
    os.chmod("/usr/local/sbin/sudo", 0o755)
    for name, value in _SYSCTLS:
        try:
            _write_file(f"/proc/sys/{name}", value)
        except FileNotFoundError:
            continue
    _socket.sethostname("ghostbpf")
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    # struct ifreq {name[16], flags}; SIOCSIFFLAGS, IFF_UP.
    fcntl.ioctl(probe.fileno(), 0x8914, b"lo".ljust(16, b"\0") + (1).to_bytes(24, "little"))
    probe.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))


def _mount_shares(shares: list[str]) -> None:
    """Mount the host's shares (`TAG:ro:PATH` or `TAG:rw:PATH`), then make the root read-only except for STATE."""
    for share in shares:
        tag, mode, path = share.split(":", 2)
        os.makedirs(path, exist_ok=True)
        _mount(tag, path, "virtiofs", _MS_RDONLY if mode == "ro" else 0)
    _mount(STATE, STATE, "", _MS_BIND)
    _mount("tmpfs", LIBRARY, "tmpfs", 0, "mode=0755")
    _mount("", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _link_headers() -> None:
    """Link the kernel's headers to the paths of kbuild and bcc; the links within them are relative."""
    for place in ("usr/src", "usr/lib/modules"):
        _mount("tmpfs", f"/{place}", "tmpfs", 0, "mode=0755")
        for name in os.listdir(f"{HEADERS}/{place}"):
            os.symlink(f"{HEADERS}/{place}/{name}", f"/{place}/{name}")


def _start(setup: dict[str, list[str]], stdio: tuple[int, int, int], terminal: bool) -> int:
    """Fork the command with the descriptors `stdio`; it exits with 127 or 126, as in a shell, if it cannot be run."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.closerange(3, 1024)
        for number in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        environment = dict(pair.split("=", 1) for pair in setup["env"])
        os.chdir(setup["cwd"][0])
        os.execvpe(setup["argv"][0], setup["argv"], environment)
    except OSError as error:
        os.write(2, f"ghostbpf vm: {setup['argv'][0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)


def _resize(terminal: int, rows: str | bytes, columns: str | bytes) -> None:
    size = b"".join(int(n).to_bytes(2, "little") for n in (rows, columns, 0, 0))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def _follow_control(port: int, pid: int, terminal: int) -> None:
    """Execute the host's control lines, `signal N` and `size ROWS COLUMNS`; power off when the host closes the port."""
    _become_realtime()
    pending = b""
    while data := os.read(port, 4096):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"signal":
                try:  # noqa: SIM105
                    os.killpg(pid, int(numbers[0]))
                except ProcessLookupError:
                    pass
            elif word == b"size" and terminal >= 0:
                _resize(terminal, *numbers)
    _power_off()


def _copy_input(wire: Wire, fd: int, terminal: bool) -> None:
    """Write the host's input frames to `fd`."""
    _become_realtime()
    try:
        while True:
            kind, data = wire.receive()
            if kind == STDIN_END:
                os.write(fd, b"\x04") if terminal else os.close(fd)
            rest = memoryview(data)
            while kind == STDIN and rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except OSError:
                    # The command has closed its input: drop the rest, as a closed pipe does.
                    break
    except EOFError:
        _power_off()


def _power_off() -> None:
    os.sync()
    # The power goes off shortly after the write returns; the kernel panics if init ends before.
    _write_file("/proc/sysrq-trigger", "o")
    while True:
        time.sleep(10)


def _run(wire: Wire, control: int) -> None:
    _, blob = wire.receive()
    setup: dict[str, list[str]] = {"share": [], "env": [], "argv": [], "cwd": ["/"], "tty": []}
    for item in blob.decode("utf-8", "surrogateescape").split("\0"):
        name, value = item.split("=", 1)
        setup[name] = (setup[name] if name in ("share", "env", "argv") else []) + [value]
    _mount_shares(setup["share"])
    if "package" in setup:
        os.symlink(setup["package"][0], f"{LIBRARY}/ghostbpf")
    if os.path.isdir(HEADERS):
        _link_headers()
    wire.send(READY, b"")
    terminal = -1
    if setup["tty"]:
        terminal, inner = os.openpty()
        _resize(terminal, *setup["tty"][0].split())
        stdio = (inner, inner, inner)
        outputs, feed = [(terminal, STDOUT)], terminal
    else:
        in_read, feed = os.pipe()
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        stdio = (in_read, out_write, error_write)
        outputs = [(out_read, STDOUT), (error_read, STDERR)]
    pid = _start(setup, stdio, terminal >= 0)
    for fd in set(stdio):
        os.close(fd)
    pumps = [Pump(wire, fd, kind) for fd, kind in outputs]
    _thread.start_new_thread(_follow_control, (control, pid, terminal))
    _thread.start_new_thread(_copy_input, (wire, feed, terminal >= 0))
    _become_realtime()
    while True:
        # init is the parent of every orphan, so this reaps them all.
        ended, how = os.wait()
        if ended == pid:
            break
    while not all(pump.drained for pump in pumps):
        time.sleep(0.005)
    os.sync()
    code = os.waitstatus_to_exitcode(how)
    wire.send(STATUS, (code if code >= 0 else 128 - code).to_bytes(4, "little"))
    # The host ends the guest after it has read everything, however long that takes; `_follow_control` sees it close.
    while True:
        time.sleep(10)


def main() -> None:
    """Run as process 1."""
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    _lock_memory()
    try:
        _set_up_system()
        wire, control = Wire(_open_port(IO_PORT)), _open_port(CONTROL_PORT)
        _run(wire, control)
    except Exception as error:
        # The host shows the last lines of the console.
        print(f"ghostbpf init: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    _power_off()
