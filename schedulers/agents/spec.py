# SPDX-License-Identifier: Apache-2.0
"""A policy whose decisions an agent makes: its BPF program, its class in Python, and what each needs of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ...loaders.errors import GhostError
from ...loaders.link import Module, Target
from ...loaders.maps import Map, possible_cpus
from ...loaders.object import Object
from ...loaders.source import BPF_DIR
from ..core import Core, constant
from ..cpuset import CpuSet
from ..policy import LoadedPolicy, Option, Policy
from ..topology import Topology
from . import shared
from .task import Task, Transaction, TxnState


class EnclaveView(Protocol):
    """What an agent's kernel interface knows of an enclave."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def core(self) -> Core:
        """The core that it is part of."""

    @property
    def cpus(self) -> CpuSet:
        """Its CPUs."""

    @property
    def path(self) -> Path:
        """Its directory in bpffs."""

    @property
    def live_bank(self) -> int:
        """The bank of its policy."""

    @property
    def hints_path(self) -> Path:
        """Where its table of hints is pinned."""


class PolicyView(Protocol):
    """What an agent calls and reads of a policy besides the callbacks named by messages; see ``AgentPolicy``."""

    due_ns: int
    looks_again: bool

    @property
    def name(self) -> str: ...
    @property
    def task_type(self) -> type[Task]: ...
    def callback(self, name: str, /) -> Callable[[Any], object] | None: ...
    def enqueue(self, task: Task, /) -> None: ...
    def schedule(self) -> Iterable[Transaction]: ...
    def place(self, task: Task, cpus: tuple[int, ...], /) -> int: ...
    def on_task_new(self, task: Task, /) -> None: ...
    def on_task_wakeup(self, task: Task, /) -> None: ...
    def on_task_blocked(self, task: Task, /) -> None: ...
    def on_task_departed(self, task: Task, /) -> None: ...
    def on_affinity_changed(self, task: Task, /) -> None: ...
    def on_cpus_changed(self, cpus: CpuSet, /) -> None: ...
    def on_refused(self, transaction: Transaction, state: TxnState, /) -> None: ...


class AgentPolicyClass(Protocol):
    """What the registry, the loader and the agent read of a policy's class; it makes one policy for each agent."""

    @property
    def options(self) -> tuple[Option, ...]: ...
    @property
    def per_cpu(self) -> bool: ...
    @property
    def hinted(self) -> bool: ...
    @property
    def watches_cpus(self) -> bool: ...
    def __call__(self, agent: Any, **options: int) -> PolicyView: ...


@dataclass(frozen=True)
class AgentPolicySpec(Policy):
    """A policy whose decisions an ``agent`` makes; the BPF program is the same for all of them."""

    program: str = "agent"
    directory: Path = BPF_DIR / "agent"
    queues: bool = True
    agent: AgentPolicyClass = field(kw_only=True)

    has_agents: ClassVar[bool] = True

    @property
    def defines(self) -> dict[str, int]:
        """Like Policy.defines; the code for cgroups is only compiled for policies that weigh them."""
        return {**super().defines, **({"WEIGHS_CGROUPS": 1} if self.weighs_cgroups else {})}

    def is_hinted(self, compiled: Object) -> bool:
        """Whether its BPF program or its class reads hints."""
        return self.agent.hinted or super().is_hinted(compiled)

    def check(self, values: Mapping[str, int], cpus: CpuSet) -> None:
        """Raise GhostError where an agent with these options cannot decide for ``cpus``."""
        cpu = values["agent_cpu"]
        if cpu >= 0 and cpu not in (online := Topology.from_sysfs().all_cpus):
            raise GhostError(f"CPU {cpu}, for the agent, is not online", hint=f"choose one of {online}")
        if values.get("spin") and len(cpus) < 2:
            raise GhostError(
                f"an agent that spins needs a CPU besides CPU {cpus}", hint="name two or more: --cpus FIRST-LAST"
            )

    def load(self, compiled: Object, enclave: int, maps: Mapping[str, Map], values: Mapping[str, int]) -> LoadedPolicy:
        """Like Policy.load(); opens the maps that agents of ``enclave`` share, or makes and pins them."""
        pinned = shared.open_maps(enclave)
        channels = possible_cpus() + 1
        entries = {"channels": channels, "rings": channels, "agents": channels, "txns": channels * constant("TXNS")}
        module = Module(compiled, maps={**maps, **pinned}, constants={"enclave": enclave}, entries=entries)
        if not pinned:
            shared.pin(enclave, module)
        loaded = self._load(module, values)
        with module.load("call_set_release", Target.syscall()) as set_release:
            set_release.run()
        return replace(loaded, maps={name: m for name, m in loaded.maps.items() if name not in shared.shared_maps()})
