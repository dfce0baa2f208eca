# SPDX-License-Identifier: Apache-2.0
"""The BPF programs that agents call, and those that serve agents."""

from __future__ import annotations

from collections.abc import Mapping

from ...loaders import compiler
from ...loaders.attach import Link
from ...loaders.link import Module, Target
from ...loaders.maps import Map
from .shared import Agents
from .spec import AgentPolicySpec, EnclaveView


class AgentPrograms:
    """The programs of one agent, and of the agents that its process forks: the verifier checks them once for all.

    ``maps`` are those of the policy's BPF program that they use. None of the programs depends on the agent that calls
    it. One tracks the end of agents from now on, until no process has this object.
    """

    def __init__(self, enclave: EnclaveView, agents: Agents, spec: AgentPolicySpec, maps: Mapping[str, Map]) -> None:
        obj = compiler.compile(spec.source, spec.defines)
        module = Module(obj, maps={**enclave.core.maps, **agents.maps, **maps}, constants={"enclave": enclave.id})
        self.commit, self.register_waiting, self.associate, self.take, self.leave, self.spin = (
            module.load(f"call_{name}", Target.syscall())
            for name in ("commit", "register_waiting", "associate", "take", "leave", "spin")
        )
        self.pulse = module.load("pulse", Target.perf_event())
        #: Sends messages about CPUs that another class takes; only where the policy asks for them.
        self.cpu_watch = (
            module.load("tp_sched_switch", Target.tracepoint("sched_switch")) if spec.agent.watches_cpus else None
        )
        self._exits = Link.tracepoint(module.load("tp_sched_process_exit", Target.tracepoint("sched_process_exit")))
