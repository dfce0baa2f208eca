# SPDX-License-Identifier: Apache-2.0
"""A throw-away guest with a sched_ext kernel, from Debian packages alone.

It stands beside the rest of ghostbpf and knows none of it: a kernel from the archive (`kernels`), a root and tools made
by mmdebstrap (`images`), QEMU over virtiofs (`machine`, `session`), and in the guest one process of ours (`init`).
"""

from .errors import (
    BadRequest,
    GuestError,
    GuestLost,
    GuestOops,
    GuestTimeout,
    ImageError,
    KernelNotFound,
    VmError,
)
from .guest import Completed, capture, catalog, console_to_stderr, run
from .kernels import BootImage, Kernel, KernelCatalog
from .request import Guest, parse_memory

__all__ = [
    "BadRequest",
    "BootImage",
    "Completed",
    "Guest",
    "GuestError",
    "GuestLost",
    "GuestOops",
    "GuestTimeout",
    "ImageError",
    "Kernel",
    "KernelCatalog",
    "KernelNotFound",
    "VmError",
    "capture",
    "catalog",
    "console_to_stderr",
    "parse_memory",
    "run",
]
