# SPDX-License-Identifier: Apache-2.0
"""What CPUs do right now, read where the kernel writes it."""

from __future__ import annotations

import ctypes

from ..core import ffi
from ..enclave import Enclave

_SIZE = ffi().sizeof("struct cpu") // 4
_RUNNING, _LATCHED, _TAKEN = (ffi().offsetof("struct cpu", field) // 4 for field in ("running", "latched", "taken"))
_SPINNER = ffi().offsetof("struct enclave", "spinner") // 8
_here = ctypes.CDLL(None).sched_getcpu


class CpuFlags:
    """The state of ``cpus``, in their order; those that are offline are neither idle nor busy."""

    def __init__(self, enclave: Enclave, cpus: tuple[int, ...]) -> None:
        self._places = [(cpu, cpu * _SIZE) for cpu in cpus]
        self._flags = enclave.core.cpus.view().cast("I")
        self._online = enclave.core.state.online
        self._enclave = enclave.core.enclaves.view(enclave.id, 1).cast("Q")

    def idle(self) -> list[int]:
        """Those that run nothing and have nothing committed to them."""
        flags = self._flags
        return [cpu for cpu, at in self._places if not flags[at + _RUNNING] and self._is_open(cpu, at)]

    def busy(self) -> list[int]:
        """Those that run a task of ours and have nothing committed to them."""
        flags = self._flags
        return [cpu for cpu, at in self._places if flags[at + _RUNNING] and self._is_open(cpu, at)]

    def _is_open(self, cpu: int, at: int) -> bool:
        flags = self._flags
        if flags[at + _LATCHED] or self._enclave[_SPINNER] >> 32 == 1 + cpu:
            return False
        # The agent's own CPU is taken by itself, and will soon be free.
        return self.is_online(cpu) and (not flags[at + _TAKEN] or cpu == _here())

    def is_online(self, cpu: int) -> bool:
        """Whether ``cpu`` is."""
        return bool(self._online[cpu // 64] >> cpu % 64 & 1)
