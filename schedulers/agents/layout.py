# SPDX-License-Identifier: Apache-2.0
"""Where the members of bpf/abi.h's structs are in the memory that agents and the kernel share.

Loops over messages, tasks and CPUs read memoryviews: unlike a read through cffi, that makes no object.
"""

from __future__ import annotations

import struct

from ...loaders import abi
from ..core import ffi

_FORMATS = {4: "I", 8: "Q"}  # of a memoryview, by the size of an unsigned integer


def column(records: memoryview, name: str, member: str) -> memoryview:
    """An integer member of each of an array of ``struct name``: item n is that of record n, in place."""
    field = dict(ffi().typeof(f"struct {name}").fields)[member]
    size = ffi().sizeof(field.type)
    return records.cast(_FORMATS[size])[field.offset // size :: ffi().sizeof(f"struct {name}") // size]  # type: ignore[call-overload, no-any-return]


def packer(name: str) -> struct.Struct:
    """Packs and unpacks a whole ``struct name`` of integers, in the order of its members."""
    return struct.Struct("=" + abi.struct_format(ffi(), f"struct {name}"))
