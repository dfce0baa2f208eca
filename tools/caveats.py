# SPDX-License-Identifier: Apache-2.0
"""Warnings on stderr: tasks whose cgroup limits or CPUs conflict with their enclave, and tasks that leave it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable

import click

from ..loaders.errors import GhostError
from ..schedulers import affinity, limits
from ..schedulers.cgroups import mount_point
from ..schedulers.enclave import Enclave
from ..schedulers.enclave_view import Departures
from ..schedulers.limits import Limit
from ..schedulers.processes import ProcTask
from ..schedulers.registry import POLICIES
from .output import printable, warn

#: The names that a line shows at most.
_MOST_NAMES = 8


class Caveats:
    """Warns of tasks in ``enclave``: once of each cgroup whose CPU limit does not hold, and of unusable CPUs."""

    def __init__(self, enclave: Enclave) -> None:
        self._enclave = enclave
        self._told: set[str] = set()

    def joined(self, tids: Iterable[int]) -> None:
        """Check tasks that have just joined."""
        tids = sorted(tids)
        for tid in tids:
            for limit in limits.of_task(tid):
                self._tell(limit)
        self.resized(tids)

    def resized(self, tids: Iterable[int]) -> None:
        """Check the affinity of tasks whose enclave has other CPUs now."""
        elsewhere = []
        for tid in sorted(tids):
            if (cpus := affinity.excludes(tid, self._enclave.cpus)) is not None:
                with contextlib.suppress(OSError):
                    elsewhere.append(f"{named(tid, ProcTask(tid).comm)} (CPU {cpus})")
        if elsewhere:
            _warn(
                f"{counted(len(elsewhere), 'task')} may use none of the CPUs of enclave {self._enclave.id}, "
                f"{self._enclave.cpus}, and will run elsewhere: {few(elsewhere)}",
                f"taskset -cp {self._enclave.cpus} TID, or another cpuset",
            )

    def everything_joined(self) -> None:
        """Check every cgroup."""
        with contextlib.suppress(GhostError):
            for limit in limits.everywhere(mount_point()):
                self._tell(limit)

    def _tell(self, limit: Limit) -> None:
        if limit.cgroup in self._told:
            return
        self._told.add(limit.cgroup)
        void = limit.without(applied_settings(self._enclave))
        if void is not None:
            _warn(
                f"{void} does not hold in enclave {self._enclave.id}",
                "use cfs_bpf or cfs, which know weights; tasks that leave the enclave have their weight again"
                if self._enclave.applies_cgroup_limits
                else f"ghostbpf enclave limits {self._enclave.id} on",
            )


def applied_settings(enclave: Enclave) -> set[str]:
    """The settings of cgroups that hold in ``enclave``."""
    if not enclave.applies_cgroup_limits:
        return set()
    policy = POLICIES.get(enclave.policy)
    return {"cpu.max", *(("cpu.weight", "cpu.idle") if policy is not None and policy.weighs_cgroups else ())}


def tell_departures(left: Departures) -> None:
    """Report the tasks that left the enclave on their own, if any."""
    if left.count:
        alone = "by itself" if left.count == 1 else "by themselves"
        click.echo(f"{counted(left.count, 'task')} left the enclave {alone}: {_last_names(left)}", err=True)


def left_line(left: Departures) -> str:
    """How many tasks left on their own, and the names of the last ones."""
    return f"{left.count} ({_last_names(left)})" if left.count else "0"


def named(tid: int, comm: str) -> str:
    """A task's name and number."""
    return f"{printable(comm)} {tid}"


def few(names: Collection[str]) -> str:
    """All names, or the first ones and the number of the rest."""
    more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join([*list(names)[:_MOST_NAMES], *more])


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 task", "2 tasks"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _last_names(left: Departures) -> str:
    before = left.count - len(left.last)
    return ", ".join(named(*task) for task in left.last) + (f", {before} before" if before else "")


def _warn(what: str, hint: str) -> None:
    warn([GhostError(what, hint=hint)])
