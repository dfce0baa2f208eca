# SPDX-License-Identifier: Apache-2.0
"""The pid namespace of this process: whether it is the initial one, whose numbers BPF programs use."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import GhostError

#: The inode of the initial namespace (PROC_PID_INIT_INO of the kernel).
_INITIAL = 0xEFFFFFFC
_SELF = Path("/proc/self")
_ON_THE_HOST = "run it in the initial pid namespace: on the host, not in a container"


class NamespaceError(GhostError):
    """The action is not possible in this pid namespace."""


def is_initial(process: Path = _SELF) -> bool:
    """Whether ``process``, a directory of /proc (default: this process), is in the initial pid namespace.

    Raises NamespaceError if /proc does not say.
    """
    try:
        return (process / "ns/pid").stat().st_ino == _INITIAL
    except OSError:
        raise _foreign_proc() from None


def need_own_proc() -> None:
    """Raise NamespaceError if /proc shows the tasks of another pid namespace than this process's."""
    try:
        lines = (_SELF / "status").read_text(errors="replace", encoding="utf-8").splitlines()
    except OSError:
        raise _foreign_proc() from None
    # One number for each namespace from that of /proc down to the process's own.
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    if len(numbers) > 1:
        raise _foreign_proc()


def need_initial(action: str) -> None:
    """Raise NamespaceError, saying that ``action`` is impossible, unless this is the initial pid namespace."""
    if not is_initial():
        raise NamespaceError(f"cannot {action} from within a pid namespace", hint=_ON_THE_HOST)


def note() -> str:
    """The note for output with numbers of the initial namespace; empty in that namespace."""
    return "" if is_initial() else "tids and pids are those of the initial pid namespace"


def _foreign_proc() -> NamespaceError:
    return NamespaceError(
        f"/proc is not that of the pid namespace of process {os.getpid()}",
        hint="mount -t proc proc /proc, in a mount namespace of its own (unshare --pid --fork --mount-proc)",
    )
