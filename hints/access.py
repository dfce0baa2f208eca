# SPDX-License-Identifier: Apache-2.0
"""Which users can open a table by its path: its creator, and users and groups that it admits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..loaders.errors import GhostError, PermissionMissing


def admit(path: Path, *, uid: int | None = None, gid: int | None = None) -> None:
    """Let user ``uid`` or group ``gid`` read and write the table pinned at ``path``; it replaces the previous one.

    The two directories above the table, which ghostbpf creates, become searchable by all users. Raises GhostError if
    a directory above those is closed to other users, and PermissionMissing; no other user is admitted then.
    """
    closed = [directory for directory in path.parents if not directory.stat().st_mode & 0o001]
    created = path.parents[:2]
    for directory in closed:
        if directory not in created:
            raise GhostError(
                f"{directory} is closed to other users",
                hint=f"chmod o+x {directory}, or pass the table's descriptor to the application",
            )
    if gid is not None:
        with _needing("CAP_FOWNER", f"change the mode of {path}"):
            path.chmod(0o660)
    with _needing("CAP_CHOWN", f"give {path} to another user or group"):
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
    for directory in closed:
        directory.chmod(directory.stat().st_mode | 0o011)


@contextlib.contextmanager
def _needing(capability: str, action: str) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise PermissionMissing(capability, action) from None
