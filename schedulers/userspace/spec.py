# SPDX-License-Identifier: Apache-2.0
"""An AgentPolicy class as a policy of the registry and the command: its options, and how its agent is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...loaders import capabilities
from ..agents import AgentPolicySpec
from ..policy import PolicyOptions
from .agent_process import AgentProcess
from .options import agent_options
from .policy import AgentPolicy


@dataclass(frozen=True)
class PythonPolicySpec(AgentPolicySpec):
    """A policy in Python; its agent is a process of its own."""

    def start_agent(self, options: PolicyOptions[Any], *, stay: bool = False) -> AgentProcess:
        """Fork the agent process; see Policy.start_agent(). Raises PermissionMissing."""
        capabilities.need("run an agent", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE")
        return AgentProcess(options, stay=stay)


def spec_of(policy: type[AgentPolicy]) -> PythonPolicySpec:
    """``policy`` as the registry and the command know it, with the options that every agent has."""
    options = (*policy.options, *agent_options(fastpath=policy.fastpath, per_cpu=policy.per_cpu))
    summary = (policy.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return PythonPolicySpec(policy.name, summary, options, weighs_cgroups=policy.weighs_cgroups, agent=policy)
