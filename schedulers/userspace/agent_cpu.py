# SPDX-License-Identifier: Apache-2.0
"""The CPU that an agent's thread runs on: chosen once, kept across hotplug, and changed while the agent spins."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Sequence

from ..agents.kernel import KernelInterface
from ..cpuset import CpuSet
from ..enclave import Enclave
from ..errors import CpuUnusable
from ..topology import Topology


class AgentCpu:
    """Binds the thread of an agent to ``cpu``; if that is -1, an agent that ``spins`` gets one of the enclave's CPUs.

    No task of the enclave runs on the CPU that an agent spins on, so the agent leaves it when a task needs it.
    """

    def __init__(
        self,
        enclave: Enclave,
        kernel: KernelInterface,
        topology: Topology,
        is_online: Callable[[int], bool],
        *,
        cpu: int,
        spins: bool,
    ) -> None:
        self._enclave, self._kernel, self._topology, self._is_online = enclave, kernel, topology, is_online
        self._cpu, self._spins, self._records = cpu, spins, enclave.core.cpus
        self._seen_switches = 0
        self._is_bound = False

    @property
    def spin_cpu(self) -> int | None:
        """The CPU that the agent spins on; None where it sleeps instead."""
        return self._cpu if self._spins else None

    def bind(self) -> None:
        """Move to the CPU, unless that was done before; raises CpuUnusable."""
        if self._is_bound:
            return
        if self._spins and self._cpu < 0:
            self._cpu = next(filter(self._is_online, self._enclave.cpus))
        if self._cpu >= 0:
            try:
                self._kernel.stay_on(self._cpu)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise CpuUnusable(self._cpu) from None
        if self._spins:
            self._seen_switches = _involuntary_switches()
        self._is_bound = True

    def rebind(self) -> None:
        """Bind a thread that sleeps again: the kernel ended its binding if its CPU went offline."""
        cpu = self._cpu
        if not self._spins and cpu >= 0 and self._is_online(cpu) and os.sched_getaffinity(0) != {cpu}:
            with contextlib.suppress(OSError):  # the CPU went offline again
                os.sched_setaffinity(0, {cpu})

    def move_if_needed(self) -> bool:
        """Spin on another CPU, the nearest first, if a task needs this one, or it goes offline; whether it moved."""
        here, switches = self._cpu, _involuntary_switches()
        is_needed = switches != self._seen_switches or self._records[here].agent_must_move
        if self._is_online(here) and not is_needed:
            return False
        near: Sequence[CpuSet] = self._topology.neighbours(here)
        others = (cpu for ring in near for cpu in ring & self._enclave.cpus if cpu != here)
        if (choice := next(filter(self._is_online, others), None)) is None:
            return False
        self._kernel.stay_on(choice)
        self._cpu, self._seen_switches = choice, switches
        return True


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
