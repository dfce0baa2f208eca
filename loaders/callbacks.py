# SPDX-License-Identifier: Apache-2.0
"""Functions that the kernel calls back from a program, such as that of a bpf_timer: ``LINK_ADDRESS(name)``.

bcc compiles each function to a program of its own. The linker appends the callback's code to that of the program that
refers to it, as a second function, and describes both in a small BTF: the kernel accepts a callback only if BTF calls
it static.
"""

from __future__ import annotations

import struct

from .object import LD_IMM64
from .uapi import BPF_PSEUDO_FUNC

_MAGIC, _HEADER = 0xEB9F, struct.Struct("<HBBIIIII")
_INT, _FUNC, _FUNC_PROTO = 1, 12, 13
_SIGNED_INT = 1 << 24 | 32
_NAMES = b"\0int\0program\0callback\0"

#: Type ids in BTF: of the function that comes first, and of each one appended to it.
_PROGRAM_ID, _CALLBACK_ID = 3, 4
#: The size of a record of func_info().
RECORD_BYTES = 8


def btf() -> bytes:
    """BTF with the types of a program and of a callback."""
    named = {name: _NAMES.index(name + b"\0") for name in (b"int", b"program", b"callback")}
    types = struct.pack("<4I", named[b"int"], _INT << 24, 4, _SIGNED_INT)
    types += struct.pack("<3I", 0, _FUNC_PROTO << 24, 1)
    types += struct.pack("<3I", named[b"program"], _FUNC << 24, 2)
    types += struct.pack("<3I", named[b"callback"], _FUNC << 24, 2)
    return _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(_NAMES)) + types + _NAMES


def func_info(starts: list[int]) -> bytes:
    """The kernel's ``struct bpf_func_info[]`` for functions that begin at these instructions, the program at 0."""
    return b"".join(struct.pack("<2I", start, _CALLBACK_ID if start else _PROGRAM_ID) for start in starts)


def refer(code: bytearray, instruction: int, start: int) -> None:
    """Make the ld_imm64 at ``instruction`` refer to the function that begins at instruction ``start``."""
    registers = code[instruction * 8 + 1] & 0x0F | BPF_PSEUDO_FUNC << 4
    struct.pack_into("<BBhiBBhi", code, instruction * 8, LD_IMM64, registers, 0, start - instruction - 1, 0, 0, 0, 0)
