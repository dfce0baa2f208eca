# SPDX-License-Identifier: Apache-2.0
"""A disposable guest with a sched_ext kernel, made of Debian packages.

A kernel from the archive (`kernels`), a root and tools made by mmdebstrap (`images`), QEMU and virtiofs (`machine`,
`session`), and in the guest an init process (`init`). Of the rest of ghostbpf it uses only the BTF reader of `loaders`.
"""

from .errors import (
    BadRequest,
    GuestError,
    GuestLost,
    GuestOops,
    GuestTimeout,
    ImageError,
    KernelNotFound,
    QemuDied,
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
    "QemuDied",
    "VmError",
    "capture",
    "catalog",
    "console_to_stderr",
    "parse_memory",
    "run",
]
