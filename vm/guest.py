# SPDX-License-Identifier: Apache-2.0
"""Runs a command in a disposable guest."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import init
from .accel import TRIAL_SECONDS, choose
from .cache import cache_dir, locked, log, write_atomically
from .errors import BadRequest, GuestError, VmError
from .images import TOOLS_ROOT, tree, with_packages
from .kernels import KernelCatalog
from .machine import Machine, Share, Tools, host_tools, tools_in
from .mirrors import Mirror, find_mirror
from .packages import Apt
from .precompile import precompile
from .request import Guest, check, setup, shared_directory, shares
from .session import Session, Sink

# How often to start a guest that QEMU may have killed before the command started.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Completed:
    """A captured command's exit status and output, and the console of the guest's kernel."""

    status: int
    stdout: bytes
    stderr: bytes
    console: str


def catalog(mirror: str | None = None) -> KernelCatalog:
    """The kernels in this machine's cache and archive."""
    return _catalog(cache_dir(), find_mirror(mirror))


def run(
    command: Sequence[str],
    guest: Guest | None = None,
    *,
    timeout: float | None = None,
    cwd: Path | None = None,
    stdin: int | None = 0,
    stdout: Sink | int = 1,
    stderr: Sink | int = 2,
    console: Sink | None = None,
    terminal: bool = False,
) -> int:
    """Boot `guest`, run `command` in it and return its exit status (128+N if signal N ended it).

    stdin is a descriptor, or None for an empty one. stdout and stderr are descriptors, or functions called with output
    as it arrives; `console` is called with what the guest's kernel prints. `timeout` is in seconds from the start of
    the guest. With `terminal`, stdin must be a terminal, and the command gets one of the same size. Raises VmError.
    """
    if terminal and (stdin is None or not os.isatty(stdin)):
        raise BadRequest("stdin is not a terminal", "leave --tty out")
    size = os.get_terminal_size(stdin) if terminal and stdin is not None else None
    with _prepared(command, guest or Guest(), timeout, cwd, size) as begin:
        make = partial(
            begin, stdin=stdin, stdout=_sink(stdout), stderr=_sink(stderr), console=console, terminal=terminal
        )
        return _boot(make, timeout)[0]


def capture(
    command: Sequence[str],
    guest: Guest | None = None,
    *,
    timeout: float | None = None,
    cwd: Path | None = None,
    input: bytes = b"",
) -> Completed:
    """As `run`, with `input` as stdin; returns the output."""
    out, err = bytearray(), bytearray()
    with tempfile.TemporaryFile() as file, _prepared(command, guest or Guest(), timeout, cwd, None) as begin:
        file.write(input)
        file.seek(0)
        make = partial(begin, stdin=file.fileno(), stdout=out.extend, stderr=err.extend)
        status, console = _boot(make, timeout)
    return Completed(status, bytes(out), bytes(err), console)


def _boot(make: Callable[[], Session], timeout: float | None) -> tuple[int, str]:
    """Exit status and console of the first guest that QEMU does not kill before the command starts."""
    begin = time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        session = make()
        try:
            return session.run(timeout, begin), session.console
        except GuestError as error:
            if session.begun or not error.emulation or attempt == _ATTEMPTS:
                raise
            log(f"{error.message}; QEMU may be the cause: starting another guest")
    raise AssertionError("unreachable")


@contextmanager
def _prepared(
    command: Sequence[str], guest: Guest, timeout: float | None, cwd: Path | None, size: os.terminal_size | None
) -> Iterator[Callable[..., Session]]:
    """Fetch and make what is missing; the trees are locked against removal until the guest has ended."""
    check(command, guest, timeout)
    share = shared_directory(guest.share)
    home = cache_dir()
    mirror = find_mirror(guest.mirror)
    kernels = _catalog(home, mirror)
    kernel = kernels.resolve(guest.kernel, refresh=guest.refresh)
    headers = kernels.headers(kernel.release) if guest.headers else None
    with ExitStack() as stack:
        tools = host_tools()
        if tools is None:
            place, lock = tree(home, TOOLS_ROOT, mirror)
            stack.enter_context(locked(lock, shared=True))
            tools = tools_in(place)
        root, lock = tree(home, with_packages(guest.packages), mirror)
        stack.enter_context(locked(lock, shared=True))
        cpus = guest.cpus or max(2, os.cpu_count() or 2)
        if guest.precompile:
            precompile(root, kernel.vmlinux, kernel.release, cpus)
        machine = Machine(
            kernel.vmlinux,
            cpus=cpus,
            memory=guest.memory,
            accel="tcg",
            append=guest.append,
            start=_install_init(root),
            exact=guest.exact,
        )
        requested = "tcg" if guest.exact else guest.accel
        accel = choose(requested, home / "accel.json", tools.version, partial(_trial, tools, machine, root))
        shared = shares(root, share, headers)
        lines = setup(command, guest.environment, shared, (cwd or Path.cwd()).resolve(), size)
        yield partial(Session, tools, replace(machine, accel=accel), shared, lines)


def _catalog(home: Path, mirror: Mirror) -> KernelCatalog:
    return KernelCatalog(home / "kernels", Apt(home / "apt", mirror))


def _install_init(root: Path) -> str:
    """Copy init into the root, under a name that contains a hash of its text, and return the script that starts it.

    The script imports init, so that the guest's Python compiles it once and not in each boot.
    """
    text = Path(init.__file__).read_bytes()
    name = f"init_{hashlib.sha256(text).hexdigest()[:12]}"
    home = root / init.STATE.lstrip("/")
    if not (home / f"start-{name}.py").exists():
        write_atomically(home / f"{name}.py", text)
        write_atomically(home / f"start-{name}.py", f"import {name}\n\n{name}.main()\n".encode())
    return f"{init.STATE}/start-{name}.py"


def _trial(tools: Tools, machine: Machine, root: Path) -> int:
    out = bytearray()
    session = Session(
        tools,
        replace(machine, accel="kvm"),
        [Share("root", root)],
        ["argv=/bin/true", "cwd=/"],
        stdin=None,
        stdout=out.extend,
        stderr=out.extend,
    )
    return session.run(TRIAL_SECONDS)


def _sink(target: Sink | int) -> Sink:
    return partial(write_all, target) if isinstance(target, int) else target


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to `fd`; raises BrokenPipeError, and VmError for other errors."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # Another process that shares the descriptor has made it non-blocking.
            time.sleep(0.01)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise VmError(f"cannot write the guest's output: {(error.strerror or '').lower()}") from None


def console_to_stderr(data: bytes) -> None:
    """Print the guest's console to stderr; for `run`."""
    sys.stderr.flush()
    write_all(2, data)
