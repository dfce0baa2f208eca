# SPDX-License-Identifier: Apache-2.0
"""Tasks as /proc shows them, and rules that say which are meant."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from . import cgroups, pids
from .tasks import is_movable, threads

#: What the kernel keeps of a process's name.
COMM_CHARS = 15


class ProcTask:
    """Thread ``tid``; what there is to know of it is read when it is first asked for, OSError where it is gone then."""

    def __init__(self, tid: int) -> None:
        self.tid = tid

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self._status["Tgid"])

    @property
    def uid(self) -> int:
        """Its effective user."""
        return int(self._status["Uid"].split()[1])

    @cached_property
    def comm(self) -> str:
        """Its process's name."""
        return Path(f"/proc/{self.pid}/comm").read_bytes()[:-1].decode(errors="backslashreplace")

    @cached_property
    def cgroup(self) -> str:
        """Its control group, of version 2; "" where it has none."""
        lines = Path(f"/proc/{self.tid}/cgroup").read_text(errors="backslashreplace").splitlines()
        return next((line[3:] for line in lines if line.startswith("0::")), "")

    @property
    def ancestors(self) -> Iterator[int]:
        """Its process's parent, and on to the first process, as far as they live."""
        parent = int(self._status["PPid"])
        with contextlib.suppress(OSError):
            while parent:
                yield parent
                parent = int(ProcTask(parent)._status["PPid"])

    @cached_property
    def _status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.tid}/status").read_text(errors="backslashreplace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True)
class Rule:
    """Which tasks are meant: those that fit one of each kind that is given.

    ``comms`` are globs of process names; of ``cgroups``, which are directories, those below are meant, too, and of
    ``parents`` all descendants; ``uids`` are effective.
    """

    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()
    parents: frozenset[int] = frozenset()

    def fits(self, task: ProcTask, candidates: Container[int] | None = None) -> bool:
        """Whether ``task`` is meant; OSError where it is gone.

        To look at many tasks, ``candidates()`` is asked once, and given.
        """
        if self.cgroups and candidates is None:
            candidates = self.candidates()
        return (
            (not self.uids or task.uid in self.uids)
            and (not self.comms or any(fnmatchcase(task.comm, glob) for glob in self.comms))
            and (not self.cgroups or candidates is None or task.tid in candidates)
            and (not self.parents or any(pid in self.parents for pid in task.ancestors))
            and is_movable(task.tid)
        )

    def candidates(self) -> set[int]:
        """The tasks there are now, without most of those that are not meant."""
        if self.cgroups:
            return set().union(*map(cgroups.tasks, self.cgroups))
        return all_tasks()

    def matching(self) -> set[int]:
        """The tasks there are now that are meant."""
        candidates = self.candidates()
        return {tid for tid in candidates if self.fits_now(tid, candidates)}

    def fits_now(self, tid: int, candidates: Container[int] | None = None) -> bool:
        """Whether there is a task ``tid`` that is meant, like fits()."""
        try:
            return self.fits(ProcTask(tid), candidates)
        except OSError:
            return False


def all_tasks() -> set[int]:
    """Every thread of every process now; raises NamespaceError where /proc is not ours."""
    pids.need_own_proc()
    return {tid for entry in os.listdir("/proc") if entry.isdecimal() for tid in threads(int(entry))}
