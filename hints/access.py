# SPDX-License-Identifier: Apache-2.0
"""Who may open a table by its path: its maker, and whom that admits."""

from __future__ import annotations

import os
from pathlib import Path

from ..loaders.errors import GhostError


def admit(path: Path, *, uid: int | None = None, gid: int | None = None) -> None:
    """Let user ``uid`` or group ``gid``, in place of the one before, open the table pinned at ``path`` and write it.

    The directories above it that are ours alone become ones to pass through. Raises GhostError where others are in
    the way.
    """
    closed = [directory for directory in path.parents if not directory.stat().st_mode & 0o001]
    ours = path.parents[:2]
    for directory in closed:
        if directory not in ours:
            raise GhostError(
                f"{directory} is closed to other users",
                hint=f"chmod o+x {directory}, or pass the table's descriptor on",
            )
    for directory in closed:
        directory.chmod(directory.stat().st_mode | 0o011)
    os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
    if gid is not None:
        path.chmod(0o660)
