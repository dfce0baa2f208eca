# SPDX-License-Identifier: Apache-2.0
"""What the caller asks for: checked before anything is started, and put into words for the guest's agent."""

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
CPUS_MAXIMUM = 64

# What a command may need to know of the terminal and of the person; everything else of the host stays outside.
_PASSED_ON = re.compile(r"(TERM|COLORTERM|NO_COLOR|FORCE_COLOR|GHOSTBPF_\w+)$")
# A share here would lie over what the guest itself needs.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var")

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Guest:
    """What to boot. `memory` is in MiB; `share` is the host directory that the guest sees, and may write, in its place.

    The default share is the checkout that this package lies in or, if it is installed elsewhere, the current directory.
    With `headers`, the guest has the kernel's headers in /lib/modules/RELEASE/build and source. With `exact`, QEMU
    counts instructions, one for each nanosecond of the guest's clock, whatever the host is busy with.
    `packages` are Debian packages that its root has besides those of every guest.
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
    mirror: str | None = None
    refresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def parse_memory(text: str) -> int:
    """MiB in a size such as `2G`, `512M` or `512` (MiB); raises BadRequest."""
    match = re.fullmatch(r"(\d{1,9})([MG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise BadRequest(f"memory {text!r} is not a size", "2G or 512M")
    return int(match[1]) * (1024 if match[2].upper() == "G" else 1)


def check(command: Sequence[str], guest: Guest, timeout: float | None) -> None:
    """Raise BadRequest for what cannot be had, before anything is fetched or made."""
    if not command or not command[0]:
        raise BadRequest("no command to run in the guest")
    if any("\0" in word for word in (*command, *guest.environment, *guest.environment.values())):
        raise BadRequest("a word of the command or its environment holds a NUL byte")
    if guest.cpus is not None and not 1 <= guest.cpus <= CPUS_MAXIMUM:
        raise BadRequest(f"{guest.cpus} CPUs cannot be had", f"from 1 to {CPUS_MAXIMUM}")
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if not MEMORY_MINIMUM <= guest.memory <= most:
        raise BadRequest(
            f"{guest.memory}M of memory cannot be had", f"from {MEMORY_MINIMUM}M to this machine's {most}M"
        )
    if timeout is not None and not 0 < timeout < 1e9:
        raise BadRequest(f"a time-out of {timeout:g} s cannot be kept", "a number of seconds above 0")
    if guest.accel not in ("auto", "kvm", "tcg"):
        raise BadRequest(f"accelerator {guest.accel!r} is not known", "auto, kvm or tcg")
    if guest.exact and guest.accel == "kvm":
        raise BadRequest("KVM cannot count instructions", "--exact without --accel kvm")
    if not guest.append.isprintable() or "--" in guest.append.split():
        raise BadRequest(f"{guest.append!r} cannot go on a kernel command line", "one line of words, without --")
    if os.geteuid() != 0:
        raise BadRequest("a guest's files are made and served with their owners, which only root can do", "sudo")


def shared_directory(choice: Path | None) -> Path:
    """The directory to share; raises BadRequest for one that is not there or that would hide the guest's own."""
    directory = (choice or (PACKAGE if (PACKAGE / "pyproject.toml").exists() else Path.cwd())).resolve()
    if not directory.is_dir():
        raise BadRequest(f"{directory} is not a directory", "--share with one that is")
    if directory == Path("/") or (len(directory.parts) == 2 and directory.parts[1] in _SYSTEM):
        raise BadRequest(
            f"{directory} in the guest is the guest's own", "a directory of yours, or name it with --share"
        )
    return directory


def shares(root: Path, share: Path, headers: Path | None) -> list[Share]:
    """All that the guest sees of the host: its root, the shared directory and, if that is elsewhere, this package."""
    found = [Share("root", root), Share("share", share, str(share))]
    if not PACKAGE.is_relative_to(share):
        found.append(Share("package", PACKAGE, str(PACKAGE), read_only=True))
    if headers is not None:
        found.append(Share("headers", headers, init.HEADERS, read_only=True))
    return found


def setup(
    command: Sequence[str],
    environment: Mapping[str, str],
    shared: Iterable[Share],
    cwd: Path,
    size: os.terminal_size | None,
) -> list[str]:
    """The agent's NAME=VALUE lines; `size` is that of the terminal to make for the command, if any."""
    there = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONPATH": init.LIBRARY,
        # The checkout's own __pycache__ belongs to the host's Python.
        "PYTHONPYCACHEPREFIX": f"{init.STATE}/pycache",
        "XDG_CACHE_HOME": f"{init.STATE}/cache",
        **{name: value for name, value in os.environ.items() if _PASSED_ON.match(name)},
        **environment,
    }
    mounts = [share for share in shared if share.path]
    inside = any(cwd.is_relative_to(share.path) for share in mounts)
    lines = [f"share={share.tag}:{'ro' if share.read_only else 'rw'}:{share.path}" for share in mounts]
    lines += [f"env={name}={value}" for name, value in there.items()]
    lines += [f"argv={word}" for word in command]
    lines += [f"cwd={cwd if inside else mounts[0].path}", f"package={PACKAGE}"]
    if size is not None:
        lines.append(f"tty={size.lines} {size.columns}")
    return lines
