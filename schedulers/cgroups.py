# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2: finding one, and the tasks in it and below.

A cgroup is identified by its directory, not by its name: names in /proc/PID/cgroup depend on the reader's cgroup
namespace, and a cgroup has a directory below each mount point of the file system, or of a part of it.
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
        super().__init__(f"there is no cgroup {path}", hint="systemd-cgls lists them; a directory works, too")
        self.path = path


@dataclass(frozen=True)
class Mount:
    """A mount of version 2 at ``point``: cgroup ``root``, by its name for this process, and the cgroups below it."""

    point: Path
    root: PurePosixPath
    device: int

    @property
    def is_whole(self) -> bool:
        """Whether every name that this process sees has a directory here."""
        return str(self.root) == "/"


def mounts() -> list[Mount]:
    """The mounts of version 2, complete ones first; raises GhostError if there is none."""
    result = []
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            root, point = (_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
            result.append(Mount(Path(point), PurePosixPath(root), os.makedev(*map(int, fields[2].split(":")))))
    if not result:
        raise GhostError("no cgroup2 file system is mounted", hint="sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return sorted(result, key=lambda mount: not mount.is_whole)


def mount_point() -> Path:
    """The mount point of version 2, a complete one if there is one; raises GhostError."""
    return mounts()[0].point


def directory_of(path: str) -> str:
    """The directory of a cgroup, which need not exist yet, from its directory or its name: "/a/b" or "a/b".

    A name is as in /proc/PID/cgroup; without a leading / it may also be a path below a mount point. Raises NoSuchCgroup
    if no mount has it.
    """
    mounted = mounts()
    if path.startswith("/"):
        given = PurePosixPath(os.path.abspath(path))
        if _is_on(str(given), mounted) or any(given.is_relative_to(mount.point) for mount in mounted):
            return str(given)
    candidates = list(_candidates(path, mounted))
    if not candidates:
        raise NoSuchCgroup(path)
    return next((candidate for candidate in candidates if _is_on(candidate, mounted)), candidates[0])


def find(path: str) -> str:
    """The directory of a cgroup that exists; raises NoSuchCgroup."""
    if not exists(directory := directory_of(path)):
        raise NoSuchCgroup(path)
    return directory


def exists(directory: str) -> bool:
    """Whether ``directory`` is a cgroup."""
    return _is_on(directory, mounts())


def tasks(directory: str) -> set[int]:
    """The tasks (threads) in a cgroup and those below it now; none if it does not exist.

    Tasks outside of this process's pid namespace have no tid here, and are left out.
    """
    tids: set[int] = set()
    for path, _, _ in os.walk(directory):
        # The cgroup may be gone by now, or may not have tasks ("domain invalid").
        with contextlib.suppress(OSError):
            tids.update(map(int, Path(path, "cgroup.threads").read_text(encoding="utf-8").split()))
    return tids - {0}


def _candidates(path: str, mounted: list[Mount]) -> Iterator[str]:
    name = PurePosixPath("/" + path.strip("/"))
    for mount in mounted:
        # The root of a mount that begins above this process's cgroup namespace is "/.." or "/../..".
        if name.is_relative_to(mount.root):
            yield os.path.normpath(mount.point / name.relative_to(mount.root))
    if not path.startswith("/"):
        yield from (os.path.normpath(mount.point / path) for mount in mounted)


def _is_on(directory: str, mounted: list[Mount]) -> bool:
    with contextlib.suppress(OSError):
        return os.path.isdir(directory) and os.stat(directory).st_dev in {mount.device for mount in mounted}
    return False
