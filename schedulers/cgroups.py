# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2: finding one, and the tasks in it and below.

A cgroup is its directory. Its name is no way to know it: /proc/PID/cgroup tells names as seen from the reader's cgroup
namespace, and one cgroup has a directory below each place where the file system, or a part of it, is mounted.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..loaders.errors import GhostError

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class NoSuchCgroup(GhostError):
    """There is no cgroup ``path``."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"there is no cgroup {path}", hint="systemd-cgls shows those there are; one goes by its directory, too"
        )
        self.path = path


@dataclass(frozen=True)
class Mount:
    """Version 2 mounted at ``point``: cgroup ``root``, by its name as this process sees it, and what is below."""

    point: Path
    root: PurePosixPath
    device: int

    @property
    def is_whole(self) -> bool:
        """Whether names as this process sees them lead to directories here."""
        return str(self.root) == "/"


def mounts() -> list[Mount]:
    """Where version 2 is mounted, all of it or a part, the whole ones first; raises GhostError where it is nowhere."""
    found = []
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            root, point = (_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
            found.append(Mount(Path(point), PurePosixPath(root), os.makedev(*map(int, fields[2].split(":")))))
    if not found:
        raise GhostError("no cgroup2 file system is mounted", hint="sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return sorted(found, key=lambda mount: not mount.is_whole)


def mount_point() -> Path:
    """Where version 2 is mounted, as a whole if anywhere; raises GhostError."""
    return mounts()[0].point


def directory_of(path: str) -> str:
    """The directory of a cgroup, there or yet to be made, by that itself or by its name: "/a/b" or "a/b".

    A name is as /proc/PID/cgroup has it; one that does not begin with / may also be the rest of a directory below a
    mount point. Raises NoSuchCgroup where it is mounted nowhere.
    """
    there = mounts()
    if path.startswith("/"):
        given = PurePosixPath(os.path.abspath(path))
        if _is_on(str(given), there) or any(given.is_relative_to(mount.point) for mount in there):
            return str(given)
    candidates = list(_candidates(path, there))
    if not candidates:
        raise NoSuchCgroup(path)
    return next((found for found in candidates if _is_on(found, there)), candidates[0])


def find(path: str) -> str:
    """The directory of a cgroup that is there; raises NoSuchCgroup."""
    if not exists(directory := directory_of(path)):
        raise NoSuchCgroup(path)
    return directory


def exists(directory: str) -> bool:
    """Whether there is a cgroup with that directory."""
    return _is_on(directory, mounts())


def tasks(directory: str) -> set[int]:
    """The tasks (threads) in the cgroup of that directory and those below it now; none where it is not there.

    Those outside of this process's pid namespace have no number here, and are left out.
    """
    found: set[int] = set()
    for one, _, _ in os.walk(directory):
        # It may be gone by now, or be one that lost its parent's leave to have tasks.
        with contextlib.suppress(OSError):
            found.update(map(int, Path(one, "cgroup.threads").read_text().split()))
    return found - {0}


def _candidates(path: str, there: list[Mount]) -> Iterator[str]:
    name = PurePosixPath("/" + path.strip("/"))
    for mount in there:
        # Where a mount begins above this process's cgroup namespace, its root is "/.." or "/../..".
        if name.is_relative_to(mount.root):
            yield os.path.normpath(mount.point / name.relative_to(mount.root))
    if not path.startswith("/"):
        yield from (os.path.normpath(mount.point / path) for mount in there)


def _is_on(directory: str, there: list[Mount]) -> bool:
    with contextlib.suppress(OSError):
        return os.path.isdir(directory) and os.stat(directory).st_dev in {mount.device for mount in there}
    return False
