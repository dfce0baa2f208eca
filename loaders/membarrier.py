# SPDX-License-Identifier: Apache-2.0
"""The kernel's membarrier(2): order between memory accesses, for a language that has no fences of its own."""

from __future__ import annotations

import os

from . import libc
from .errors import KernelUnsupported

GLOBAL = 1  #: wait until every running thread has passed a memory barrier
GLOBAL_EXPEDITED = 2  #: a full memory barrier in the calling thread, at once

# On these machines other CPUs see stores in program order, and loads are made in program order.
_ORDERED = os.uname().machine in ("x86_64", "s390x")


def membarrier(command: int) -> bool:
    """Issue ``command``; False where the kernel cannot (GLOBAL with nohz_full)."""
    try:
        libc.syscall("membarrier", command, 0, 0)
    except (OSError, KernelUnsupported):
        return False
    return True


def fence() -> None:
    """Order the loads and stores before this call before those after it, except a store before a load."""
    if not _ORDERED:
        membarrier(GLOBAL_EXPEDITED)
