# SPDX-License-Identifier: Apache-2.0
"""A model of the core, on which the real agents run: any interleaving of agents and CPUs can be replayed.

``Kernel`` models bpf/agent, and what of bpf/core it needs, on the structs of abi.h, in steps; between two steps
anything else may happen. It is a class in layers, each of which uses only those before it: ``state``, ``messages``,
``ops``, ``events`` and ``lending``; ``programs`` is on ``messages``, too. ``World`` plays a schedule, in which bytes
say what happens at each point, and then checks that every task gets a CPU.
"""

from .fixes import ALL_FIXES, Fixes
from .kernel import Kernel
from .world import Violation, World

__all__ = ["ALL_FIXES", "Fixes", "Kernel", "Violation", "World"]
