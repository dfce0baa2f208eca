# SPDX-License-Identifier: Apache-2.0
"""A model of the kernel side of agents, on which the real agents run: every interleaving of theirs can be replayed.

``Kernel`` does what messages.bpf.h, commit.bpf.h and agent.bpf.c of bpf/agent do, on the same structs of abi.h,
in steps between which anything else may happen. ``World`` has a schedule of bytes say what does happen, then lets the
world come to rest and looks whether every task still gets a CPU.
"""

from .kernel import MENDED, Build, Kernel
from .world import Broken, World

__all__ = ["MENDED", "Broken", "Build", "Kernel", "World"]
