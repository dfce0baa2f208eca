# SPDX-License-Identifier: Apache-2.0
"""A model of the core, on which the real agents run: any interleaving of agents and CPUs can be replayed.

``Kernel`` models messages.bpf.h, commit.bpf.h and agent.bpf.c of bpf/agent on the structs of abi.h, in steps; between
two steps anything else may happen. ``World`` plays a schedule, in which bytes say what happens at each point, and then
checks that every task gets a CPU.
"""

from .kernel import ALL_FIXES, Fixes, Kernel
from .world import Violation, World

__all__ = ["ALL_FIXES", "Fixes", "Kernel", "Violation", "World"]
