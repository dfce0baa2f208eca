# SPDX-License-Identifier: Apache-2.0
"""The caller's request: checked before anything is started, and encoded for the guest's init."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import init
from .errors import BadRequest
from .machine import Share

MEMORY_MINIMUM = 256
CPUS_MAXIMUM = 255

# The host's environment variables that the command gets: those of the terminal, and ghostbpf's.
_PASSED_ON = re.compile(r"(TERM|COLORTERM|NO_COLOR|FORCE_COLOR|GHOSTBPF_\w+)$")
# A share here would hide the guest's own files.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var")

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Guest:
    """The guest to boot. `memory` is in MiB; the guest has the host directory `share`, writable, at the same path.

    The default share is the checkout that contains this package or, if it is installed, the current directory. With
    `headers`, the guest has the kernel's headers in /lib/modules/RELEASE/build and source. With `exact`, QEMU counts
    instructions, one for each nanosecond of the guest's clock, independently of the host's load. `packages` are
    additional Debian packages in its root. With `precompile`, ghostbpf's BPF programs are compiled on the host first.
    """

    kernel: str = "newest"
    cpus: int | None = None
    memory: int = 2048
    accel: str = "auto"
    append: str = ""
    share: Path | None = None
    headers: bool = False
    exact: bool = False
    packages: tuple[str, ...] = ()
    precompile: bool = False
    mirror: str | None = None
    refresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def parse_memory(text: str) -> int:
    """The MiB of a size such as `2G`, `512M` or `512` (MiB); raises BadRequest."""
    match = re.fullmatch(r"(\d{1,9})([MG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise BadRequest(f"memory {text!r} is not a size", "2G or 512M")
    return int(match[1]) * (1024 if match[2].upper() == "G" else 1)


def check(command: Sequence[str], guest: Guest, timeout: float | None) -> None:
    """Raise BadRequest for an invalid request, before anything is fetched or made."""
    if not command or not command[0]:
        raise BadRequest("no command to run in the guest")
    if any("\0" in word for word in (*command, *guest.environment, *guest.environment.values())):
        raise BadRequest("a word of the command or its environment holds a NUL byte")
    if guest.cpus is not None and not 1 <= guest.cpus <= CPUS_MAXIMUM:
        raise BadRequest(f"a guest cannot have {guest.cpus} CPUs", f"from 1 to {CPUS_MAXIMUM}")
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if not MEMORY_MINIMUM <= guest.memory <= available:
        raise BadRequest(
            f"a guest cannot have {guest.memory}M of memory", f"from {MEMORY_MINIMUM}M to this machine's {available}M"
        )
    if timeout is not None and not 0 < timeout < 1e9:
        raise BadRequest(f"invalid time-out of {timeout:g} s", "a number of seconds above 0")
    if guest.accel not in ("auto", "kvm", "tcg"):
        raise BadRequest(f"unknown accelerator {guest.accel!r}", "auto, kvm or tcg")
    if guest.exact and guest.accel == "kvm":
        raise BadRequest("KVM cannot count instructions", "leave --accel kvm out")
    if not guest.append.isprintable() or "--" in guest.append.split():
        raise BadRequest(f"{guest.append!r} is not valid on a kernel command line", "one line of words, without --")
    if os.geteuid() != 0:
        raise BadRequest("only root can make and serve a guest's files with their owners", "run it with sudo")


def shared_directory(choice: Path | None) -> Path:
    """The directory to share; raises BadRequest if it does not exist or would hide the guest's own files."""
    directory = (choice or (PACKAGE if (PACKAGE / "pyproject.toml").exists() else Path.cwd())).resolve()
    if not directory.is_dir():
        raise BadRequest(f"{directory} is not a directory", "--share DIR")
    if directory == Path("/") or (len(directory.parts) == 2 and directory.parts[1] in _SYSTEM):
        raise BadRequest(
            f"{directory} would hide the guest's own {directory}", "another current directory, or --share DIR"
        )
    return directory


def shares(root: Path, share: Path, headers: Path | None) -> list[Share]:
    """What the guest mounts: root, shared directory, this package unless the shared directory has it, headers."""
    shared = [Share("root", root), Share("share", share, str(share))]
    if not PACKAGE.is_relative_to(share):
        shared.append(Share("package", PACKAGE, str(PACKAGE), read_only=True))
    if headers is not None:
        shared.append(Share("headers", headers, init.HEADERS, read_only=True))
    return shared


def setup(
    command: Sequence[str],
    environment: Mapping[str, str],
    shared: Iterable[Share],
    cwd: Path,
    size: os.terminal_size | None,
) -> list[str]:
    """The NAME=VALUE lines for init; `size` is the size of the command's terminal, None for no terminal."""
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONPATH": init.LIBRARY,
        # The checkout's __pycache__ is the host's Python's.
        "PYTHONPYCACHEPREFIX": f"{init.STATE}/pycache",
        "XDG_CACHE_HOME": f"{init.STATE}/cache",
        **{name: value for name, value in os.environ.items() if _PASSED_ON.match(name)},
        **environment,
    }
    mounts = [share for share in shared if share.path]
    inside = any(cwd.is_relative_to(share.path) for share in mounts)
    lines = [f"share={share.tag}:{'ro' if share.read_only else 'rw'}:{share.path}" for share in mounts]
    lines += [f"env={name}={value}" for name, value in variables.items()]
    lines += [f"argv={word}" for word in command]
    lines += [f"cwd={cwd if inside else mounts[0].path}", f"package={PACKAGE}"]
    if size is not None:
        lines.append(f"tty={size.lines} {size.columns}")
    return lines
