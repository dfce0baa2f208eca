# SPDX-License-Identifier: Apache-2.0
"""Where the core and the enclaves are pinned, who may get there, and the lock on changes to them.

bpffs is often open to all users, as /tmp is: the kernel's default mode is 1777. The directories here are private, and
one that another user has made in their place is refused. A lock that others can open is one that they can hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..loaders.errors import GhostError, PermissionMissing

BPFFS = Path("/sys/fs/bpf")
ROOT = BPFFS / "ghostbpf"
CORE = ROOT / "core"

#: The reason of the last ejection, kept when the pins of the ejected core are removed.
LAST_EXIT = BPFFS / "ghostbpf_last_exit"

#: What is locked where other users may open BPFFS itself.
LOCK = BPFFS / "ghostbpf_lock"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock, which ends with the process and which no other user can hold. Mounts bpffs if it is not mounted.

    Raises PermissionMissing, and GhostError where another user has made the directory to lock.
    """
    mount_bpffs()
    with reported():
        if BPFFS.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            make_private(LOCK)
            path = LOCK
        else:
            path = BPFFS
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn a PermissionError of bpffs, whose directories only their owner may open, into PermissionMissing."""
    try:
        yield
    except PermissionError as error:
        raise PermissionMissing("CAP_DAC_OVERRIDE", f"open {error.filename}") from None


def mount_bpffs() -> None:
    """Mount bpffs at its usual place if it is not mounted, for this user alone; raises GhostError."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    if any(fields[1] == str(BPFFS) and fields[2] == "bpf" for fields in mounts):
        return
    import subprocess

    command = ["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(BPFFS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GhostError(
            f"bpffs is not mounted at {BPFFS}, and mounting it failed: {done.stderr.strip()}",
            hint=f"sudo {' '.join(command)}",
        )


def make_private(directory: Path) -> None:
    """Make ``directory`` and its missing parents, accessible to this user only; raises GhostError."""
    if directory.parent != BPFFS:
        make_private(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    check_owner(directory)


def check_owner(path: Path) -> None:
    """Raise GhostError if ``path`` is no directory of this user's or root's; FileNotFoundError if it does not exist."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise GhostError(
            f"{path} was made by user {found.st_uid}, and is not used",
            hint=f"sudo rm -r {path}; then, against it: sudo chmod 700 {BPFFS}",
        )
