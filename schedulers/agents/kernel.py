# SPDX-License-Identifier: Apache-2.0
"""The kernel interface of one agent, in one object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...hints import Hints
from ...loaders.errors import GhostError
from ...loaders.maps import Map, MmapArray
from ..core import ffi
from ..policy import Policy
from ..topology import Topology
from .channel import Channel
from .cpus import CpuFlags, cpu_flags
from .programs import AgentPrograms
from .shared import Agents
from .spec import AgentPolicySpec, EnclaveView
from .status_words import StatusWords

#: The map with a struct task_cgroup for each status word; only of policies that weigh cgroups.
_CGROUPS = "task_cgroups"


class KernelInterface:
    """Gives an agent of ``enclave`` each part of its kernel interface; tests put a model of the kernel in its place.

    The parameters are those of the policy ``spec`` in ``bank``, by default in the live one. ``programs`` are those of
    an agent of the same policy and enclave; without them, they are loaded.
    """

    def __init__(
        self,
        enclave: EnclaveView,
        spec: AgentPolicySpec,
        bank: int | None = None,
        programs: AgentPrograms | None = None,
    ) -> None:
        agents = Agents.open(enclave.id)
        if agents is None:
            raise GhostError(
                f"the policy of enclave {enclave.id} has no agent",
                hint=f"replace it first: ghostbpf run {spec.name} --enclave {enclave.id}",
            )
        self._enclave, self._spec, self._bank, self._agents = enclave, spec, bank, agents
        cgroups = {_CGROUPS: _open(enclave, bank, _CGROUPS)} if spec.weighs_cgroups else {}
        self._cgroups = MmapArray(cgroups[_CGROUPS], ffi(), "struct task_cgroup") if cgroups else None
        self.programs = AgentPrograms(enclave, agents, spec, cgroups) if programs is None else programs

    def topology(self) -> Topology:
        """The machine's CPUs."""
        return Topology.from_sysfs()

    def channel(self, number: int, ring_bytes: int) -> Channel:
        """Channel ``number``, for the calling thread."""
        return Channel(self._enclave, self._agents, self.programs, number, ring_bytes)

    def status_words(self) -> StatusWords:
        """The state of the enclave's tasks."""
        return StatusWords(self._agents, self._cgroups)

    def cpu_flags(self, cpus: tuple[int, ...]) -> CpuFlags:
        """The state of ``cpus``."""
        return cpu_flags(self._enclave, cpus)

    def params(self) -> tuple[MmapArray, Any]:
        """The parameters of the policy's BPF program; see params_of()."""
        return params_of(self._enclave, self._spec, self._bank)

    def hints(self) -> Hints:
        """What applications say of the enclave's tasks."""
        return Hints.of_enclave(self._enclave.hints_path)

    def stay_on(self, cpu: int) -> None:
        """Bind the calling thread to ``cpu``."""
        os.sched_setaffinity(0, {cpu})


def params_of(enclave: EnclaveView, policy: Policy, bank: int | None = None) -> tuple[MmapArray, Any]:
    """The parameters of ``policy`` in ``bank``, by default in the live one: the mapped array, and its one record."""
    array = MmapArray(_open(enclave, bank, "params"), *policy.params_type)
    return array, array[0]


def _open(enclave: EnclaveView, bank: int | None, name: str) -> Map:
    """A map of the policy in ``bank``, by default of the live one."""
    return Map.open(Path(enclave.path, f"policy_{enclave.live_bank if bank is None else bank}", name))
