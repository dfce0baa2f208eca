# SPDX-License-Identifier: Apache-2.0
"""The kernel's membarrier(2): order between memory accesses, for a language that has no fences of its own."""

from __future__ import annotations

import os

from ._libbpf import ffi, libc

GLOBAL = 1  #: wait until every thread of the machine has passed a barrier
GLOBAL_EXPEDITED = 2  #: be a full barrier for the caller, at once

_NUMBER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "s390x": 356, "ppc64le": 365}.get(os.uname().machine)
# Here stores are seen in the order in which they are made, and loads made in the order of the program.
_ORDERED = os.uname().machine in ("x86_64", "s390x")


def membarrier(command: int) -> bool:
    """Call it; False where the kernel cannot (GLOBAL with nohz_full)."""
    return _NUMBER is not None and libc.syscall(_NUMBER, *(ffi.cast("long", n) for n in (command, 0, 0))) == 0


def fence() -> None:
    """Have other CPUs see the loads and stores before this call before those after it; not a store before a load."""
    if not _ORDERED:
        membarrier(GLOBAL_EXPEDITED)
