# SPDX-License-Identifier: Apache-2.0
"""Tasks in /proc, and rules that select tasks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from ..loaders import pid_namespace
from . import cgroups
from .tasks import is_movable, threads

#: The characters that the kernel keeps of a process's name.
COMM_CHARS = 15


class ProcTask:
    """Thread ``tid``; each property is read from /proc on first use, and raises OSError if the task has ended."""

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
        """Its control group, of version 2; "" if it has none."""
        lines = Path(f"/proc/{self.tid}/cgroup").read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        return next((line[3:] for line in lines if line.startswith("0::")), "")

    @property
    def ancestors(self) -> Iterator[int]:
        """The parent of its process, the parent's parent, and so on, as far as they are alive."""
        parent = int(self._status["PPid"])
        with contextlib.suppress(OSError):
            while parent:
                yield parent
                parent = int(ProcTask(parent)._status["PPid"])

    @cached_property
    def _status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.tid}/status").read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True)
class Rule:
    """A rule that selects tasks: for each kind that is given, a task must match one of the values.

    ``comms`` are globs of process names; ``cgroups`` are directories and include the cgroups below; ``uids`` are
    effective; ``parents`` select all descendants. Tasks that one of the rules ``but_not`` selects do not match.
    """

    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()
    parents: frozenset[int] = frozenset()
    but_not: tuple[Rule, ...] = ()

    def without(self, rules: tuple[Rule, ...]) -> Rule:
        """The same rule for tasks that none of ``rules`` selects."""
        return replace(self, but_not=rules)

    def fits(self, task: ProcTask, candidates: Container[int] | None = None) -> bool:
        """Whether ``task`` matches; OSError if it has ended.

        For many tasks, call ``candidates()`` once and pass the result.
        """
        if self.cgroups and candidates is None:
            candidates = self.candidates()
        return (
            (not self.uids or task.uid in self.uids)
            and (not self.comms or any(fnmatchcase(task.comm, glob) for glob in self.comms))
            and (not self.cgroups or candidates is None or task.tid in candidates)
            and (not self.parents or any(pid in self.parents for pid in task.ancestors))
            and is_movable(task.tid)
            and not any(rule.fits(task) for rule in self.but_not)
        )

    def candidates(self) -> set[int]:
        """The tasks to check: all tasks now, or those of the cgroups."""
        if self.cgroups:
            return set().union(*map(cgroups.tasks, self.cgroups))
        return all_tasks()

    def matching(self) -> set[int]:
        """The tasks that match now."""
        candidates = self.candidates()
        return {tid for tid in candidates if self.fits_now(tid, candidates)}

    def fits_now(self, tid: int, candidates: Container[int] | None = None) -> bool:
        """Whether task ``tid`` exists and matches, like fits()."""
        try:
            return self.fits(ProcTask(tid), candidates)
        except OSError:
            return False


def children(pid: int) -> list[int]:
    """The processes whose parent is process ``pid``; none if it has ended."""
    found: list[int] = []
    for thread in threads(pid):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="utf-8").split())
    return found


def all_tasks() -> set[int]:
    """Every thread of every process now; raises NamespaceError if /proc is another namespace's."""
    pid_namespace.need_own_proc()
    return {tid for entry in os.listdir("/proc") if entry.isdecimal() for tid in threads(int(entry))}
