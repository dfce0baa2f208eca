# SPDX-License-Identifier: Apache-2.0
"""Scheduling classes by name, and moving tasks between them, in and out of enclaves."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Self

from ..loaders.errors import GhostError
from .core import locked
from .enclave import Enclave, Enclaves
from .errors import NoSuchEnclave
from .tasks import SCHED_DEADLINE, SCHED_EXT, policy_of, set_policy

_POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
    "ext": SCHED_EXT,
    "deadline": SCHED_DEADLINE,
}
_NAMES = {number: name for name, number in _POLICIES.items()}
_REAL_TIME = ("fifo", "rr")


@dataclass(frozen=True)
class SchedulingClass:
    """A scheduling policy by ``name``; fifo and rr have a ``priority``."""

    name: str
    priority: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "ext", "other", "batch", "idle", "fifo:PRIO" or "rr:PRIO"; raises ValueError."""
        name, colon, number = text.partition(":")
        if name == "deadline":
            raise ValueError("deadline takes a budget that suits each task: chrt --deadline, one task at a time")
        if name not in _POLICIES:
            raise ValueError(f'there is no class "{name}": choose ext, other, batch, idle, fifo:PRIO or rr:PRIO')
        if name not in _REAL_TIME:
            if colon:
                raise ValueError(f"{name} has no priority")
            return cls(name)
        low, high = os.sched_get_priority_min(_POLICIES[name]), os.sched_get_priority_max(_POLICIES[name])
        if not number.isdecimal() or not low <= int(number) <= high:
            raise ValueError(f"{name} takes a priority from {low} to {high}, for example {name}:{low}")
        return cls(name, int(number))

    @classmethod
    def of(cls, tid: int) -> Self | None:
        """The class that is set for a task; None if it has ended."""
        if (policy := policy_of(tid)) is None:
            return None
        name = _NAMES.get(policy, f"policy {policy}")
        try:
            return cls(name, os.sched_getparam(tid).sched_priority if name in _REAL_TIME else 0)
        except ProcessLookupError:
            return None

    def __str__(self) -> str:
        return f"{self.name}:{self.priority}" if self.priority else self.name


class Pusher:
    """Moves tasks to class ``target``; for ext, into ``enclave``."""

    def __init__(self, target: SchedulingClass, enclave: Enclave | None = None) -> None:
        self.target, self.enclave, self._core = target, enclave, None
        # A process that may not open the core does without the bookkeeping of enclaves.
        with contextlib.suppress(GhostError):
            if enclave is None and (enclaves := Enclaves.open()) is not None:
                self._core = enclaves.core

    def push(self, tid: int) -> bool:
        """Move task ``tid``; False if it was there already. Raises TaskError, and NoSuchEnclave if that is gone."""
        if self.enclave is not None:
            return self._push_into(self.enclave, tid)
        if SchedulingClass.of(tid) == self.target:
            return False
        if self._core is not None:
            self._core.release(tid)
        set_policy(tid, _POLICIES[self.target.name], self.target.priority)
        if self._core is not None and self._core.full:
            self._core.join(tid, 0, 0)
        return True

    def _push_into(self, enclave: Enclave, tid: int) -> bool:
        with locked():
            if enclave not in Enclaves(enclave.core):
                raise NoSuchEnclave(enclave.id)
            if any(task.tid == tid for task in enclave.tasks()):
                return False
            enclave.add(tid)
        return True
