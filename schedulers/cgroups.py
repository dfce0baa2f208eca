# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2: finding one, and the tasks in it and below."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

from ..loaders.errors import GhostError


class NoSuchCgroup(GhostError):
    """There is no cgroup ``path``."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no cgroup {path}", cure="systemd-cgls shows those there are")
        self.path = path


def mount_point() -> Path:
    """Where version 2 is mounted; raises GhostError."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise GhostError("no cgroup2 file system is mounted", cure="sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def name_of(path: str) -> str:
    """A cgroup's name as /proc/PID/cgroup has it: "/a/b", from that, from "a/b", or from its directory's path."""
    given, root = PurePosixPath(os.path.normpath("/" + path.strip("/"))), mount_point()
    return str("/" / given.relative_to(root)) if given.is_relative_to(root) else str(given)


def find(path: str) -> str:
    """The name of a cgroup that is there; raises NoSuchCgroup."""
    if not exists(name := name_of(path)):
        raise NoSuchCgroup(name)
    return name


def exists(name: str) -> bool:
    """Whether there is a cgroup of that name."""
    return _directory(name).is_dir()


def tasks(name: str) -> set[int]:
    """The tasks (threads) in cgroup ``name`` and those below it now; none where it is not there."""
    found: set[int] = set()
    for directory, _, _ in os.walk(_directory(name)):
        # It may be gone by now, or be one that lost its parent's leave to have tasks.
        with contextlib.suppress(OSError):
            found.update(map(int, Path(directory, "cgroup.threads").read_text().split()))
    return found


def _directory(name: str) -> Path:
    return mount_point() / name.lstrip("/")
