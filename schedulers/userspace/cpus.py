# SPDX-License-Identifier: Apache-2.0
"""What CPUs do right now, read where the kernel writes it."""

from __future__ import annotations

import ctypes

from ..core import ffi
from ..enclave import Enclave

_SIZE = ffi().sizeof("struct cpu") // 4
_RUNNING, _LATCHED, _PREEMPTED = (
    ffi().offsetof("struct cpu", field) // 4 for field in ("running", "latched", "preempted_by_class")
)
_SPINNER = ffi().offsetof("struct enclave", "spinner") // 8
_here = ctypes.CDLL(None).sched_getcpu


class CpuFlags:
    """The state of ``cpus``, in their order; those that are offline are neither idle nor busy."""

    def __init__(self, enclave: Enclave, cpus: tuple[int, ...]) -> None:
        self._cpus = cpus
        flags = enclave.core.cpus.view(0, 1 + max(cpus)).cast("I")
        # Each flag of all CPUs, in one piece.
        self._running, self._latched, self._preempted = (flags[at::_SIZE] for at in (_RUNNING, _LATCHED, _PREEMPTED))
        self._online = enclave.core.state.online
        self._enclave = enclave.core.enclaves.view(enclave.id, 1).cast("Q")

    def open(self) -> list[int]:
        """Those that have nothing committed to them, and that no other class has; the idle ones first."""
        running = self._running.tolist()
        return sorted(self._unclaimed(), key=lambda cpu: running[cpu] != 0)

    def idle(self) -> list[int]:
        """Those that run nothing and have nothing committed to them."""
        running = self._running.tolist()
        return [cpu for cpu in self._unclaimed() if not running[cpu]]

    def busy(self) -> list[int]:
        """Those that run a task of ours and have nothing committed to them."""
        running = self._running.tolist()
        return [cpu for cpu in self._unclaimed() if running[cpu]]

    def _unclaimed(self) -> list[int]:
        latched, preempted, spun = self._latched.tolist(), self._preempted.tolist(), (self._enclave[_SPINNER] >> 32) - 1
        return [
            cpu
            for cpu in self._cpus
            # The agent's own CPU is taken by itself, and will soon be free.
            if not latched[cpu] and cpu != spun and (not preempted[cpu] or cpu == _here()) and self.is_online(cpu)
        ]

    def is_online(self, cpu: int) -> bool:
        """Whether ``cpu`` is."""
        return bool(self._online[cpu // 64] >> cpu % 64 & 1)
