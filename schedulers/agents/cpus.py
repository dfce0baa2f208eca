# SPDX-License-Identifier: Apache-2.0
"""The state of CPUs, read in place where the core writes it."""

from __future__ import annotations

from ...loaders import libc
from ...loaders.maps import possible_cpus
from ..core import ffi
from .extension import or_native
from .layout import column
from .spec import EnclaveView


def cpu_flags(enclave: EnclaveView, cpus: tuple[int, ...], kind: type[CpuFlags] | None = None) -> CpuFlags:
    """The state of ``cpus`` of ``enclave``, of class ``kind``."""
    all_records = enclave.core.cpus
    # Of every CPU that the enclave may get: see CpuFlags.set().
    records = all_records.view(0, min(len(all_records), max(possible_cpus(), 1 + max(cpus))))
    running, latched, preempted = (
        column(records, "cpu", member) for member in ("running", "latched", "preempted_by_class")
    )
    spinner = column(enclave.core.enclaves.view(enclave.id, 1), "enclave", "spinner")
    online = memoryview(ffi().buffer(enclave.core.state.online)).cast("Q")
    return (kind or CpuFlags)(cpus, running, latched, preempted, spinner, online)


@or_native
class CpuFlags:
    """The state of ``cpus``; every list has them in this order. A CPU that is offline is neither idle nor busy.

    The CPU that the agent runs on is held by the agent itself, and will be free when it sleeps. It comes first, since a
    task that is committed to it needs no interrupt to another CPU.

    ``running``, ``latched`` and ``preempted`` have an item for each CPU, ``spinner`` has one for the enclave, and
    ``online`` a bit for each CPU, in words of 64.
    """

    def __init__(
        self,
        cpus: tuple[int, ...],
        running: memoryview,
        latched: memoryview,
        preempted: memoryview,
        spinner: memoryview,
        online: memoryview,
    ) -> None:
        self._cpus, self._running, self._latched, self._preempted = cpus, running, latched, preempted
        self._spinner, self._online = spinner, online

    def set(self, cpus: tuple[int, ...]) -> None:
        """Make ``cpus`` those of the lists."""
        self._cpus = cpus

    def open(self) -> list[int]:
        """CPUs with nothing committed that no other class holds, the idle ones first."""
        running = self._running.tolist()
        return sorted(self._unclaimed(), key=lambda cpu: running[cpu] != 0)

    def idle(self) -> list[int]:
        """CPUs that run no task of the enclave and have nothing committed."""
        running = self._running.tolist()
        return [cpu for cpu in self._unclaimed() if not running[cpu]]

    def busy(self) -> list[int]:
        """CPUs that run a task of the enclave and have nothing committed."""
        running = self._running.tolist()
        return [cpu for cpu in self._unclaimed() if running[cpu]]

    def _unclaimed(self) -> list[int]:
        latched, preempted, spun = self._latched.tolist(), self._preempted.tolist(), (self._spinner[0] >> 32) - 1
        own = libc.current_cpu()
        held_by_agent = [own] if own in self._cpus and preempted[own] else []
        free = [cpu for cpu in self._cpus if not preempted[cpu]]
        return [cpu for cpu in held_by_agent + free if not latched[cpu] and cpu != spun and self.is_online(cpu)]

    def is_online(self, cpu: int) -> bool:
        """Whether ``cpu`` is online."""
        return bool(self._online[cpu // 64] >> cpu % 64 & 1)
