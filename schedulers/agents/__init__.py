# SPDX-License-Identifier: Apache-2.0
"""The kernel interface of agents: what agents and the core share, and the programs of the core that agents call.

``shared``        the pinned maps of an enclave's agents, and the state of each agent in them
``spec``          a policy whose decisions an agent makes, as the registry, the loader and the agent know it
``task``          tasks, messages, status words and transactions, as Python has the structs of bpf/abi.h
``channel``       what one agent has: its ring of messages, its transactions, the programs that it calls
``status_words``  the state of each task, read in place
``cpus``          the state of each CPU, read in place
``kernel``        all of these for one enclave; tests put a model of the kernel in its place
``layout``        where the members of the structs are in shared memory

``enclave.py`` uses the first two, so nothing here knows more of an enclave than ``spec.EnclaveView`` says.
"""

from typing import TYPE_CHECKING, Any

from .shared import Agents, AgentState, forget, has_pins, set_agent_class

if TYPE_CHECKING:
    from .spec import AgentPolicyClass, AgentPolicySpec, EnclaveView, PolicyView
else:

    def __getattr__(name: str) -> Any:
        """What ``spec`` has is imported when it is used: an enclave whose policy is BPF alone does not use it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import spec

        return getattr(spec, name)


__all__ = [
    "AgentPolicyClass",
    "AgentPolicySpec",
    "AgentState",
    "Agents",
    "EnclaveView",
    "PolicyView",
    "forget",
    "has_pins",
    "set_agent_class",
]
