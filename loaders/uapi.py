# SPDX-License-Identifier: Apache-2.0
"""The numbers of bpf(2), by their names in the kernel's include/uapi/linux/bpf.h.

Types of maps, programs and attachments come from the running kernel's BTF. The others stand here: BTF has no macros,
and its flags are in an enum without a name, which only a walk over all types finds (0.2 s). A test compares these flags
with the kernel's.
"""

from __future__ import annotations

from . import kernel_types
from .errors import KernelUnsupported

BPF_F_RDONLY = 1 << 3
BPF_F_MMAPABLE = 1 << 10
BPF_F_LINK = 1 << 13

# Macros: a program's flag, and the source registers of instructions that refer to kernel objects.
BPF_F_SLEEPABLE = 1 << 4
BPF_PSEUDO_MAP_FD = 1
BPF_PSEUDO_CALL = 1
BPF_PSEUDO_KFUNC_CALL = 2
BPF_PSEUDO_FUNC = 4


def map_type(name: str) -> int:
    """The number of BPF_MAP_TYPE_``name``; this, and the others here, raise KernelUnsupported."""
    return value("bpf_map_type", f"BPF_MAP_TYPE_{name}")


def program_type(name: str) -> int:
    """The number of BPF_PROG_TYPE_``name``."""
    return value("bpf_prog_type", f"BPF_PROG_TYPE_{name}")


def attach_type(name: str) -> int:
    """The number of BPF_``name`` in enum bpf_attach_type."""
    return value("bpf_attach_type", f"BPF_{name}")


def value(enum: str, name: str) -> int:
    """The value of enumerator ``name`` of ``enum``."""
    values = kernel_types.enum(enum)
    if name not in values:
        raise KernelUnsupported(name, f"this kernel's enum {enum} has no {name}")
    return values[name]
