# SPDX-License-Identifier: Apache-2.0
"""C headers that BPF and Python share, parsed by cffi: each struct has one definition."""

from __future__ import annotations

import functools
import re
import struct
from pathlib import Path
from typing import Any

from .declarations import declare

_TYPEDEFS = "".join(
    f"typedef {sign}int{bits}_t {letter}{bits};" for bits in (8, 16, 32, 64) for sign, letter in (("u", "u"), ("", "s"))
)
_DIRECTIVE = re.compile(
    r"^[ \t]*#(?![ \t]*define[ \t]+\w+[ \t]+(?:0x[0-9a-fA-F]+|\d+)[ \t]*(?:/\*.*\*/)?[ \t]*$).*$", re.M
)


@functools.cache
def load(*headers: Path) -> Any:
    """An FFI with the structs, enums and numeric ``#define`` lines of ``headers``, and the types u8…u64 and s8…s64."""
    return declare(_TYPEDEFS, *(_DIRECTIVE.sub("", header.read_text(encoding="utf-8")) for header in headers))


_CODES = {"uint64_t": "Q", "int64_t": "q", "uint32_t": "I", "int32_t": "i", "uint16_t": "H", "int16_t": "h"}


def struct_format(ffi: Any, name: str) -> str:
    """The ``struct`` module's format of the C struct ``name``; TypeError if it has padding or members but integers."""
    fields = ffi.typeof(name).fields or ()
    try:
        code = "".join(_CODES[field.type.cname] for _, field in fields)
    except KeyError as error:
        raise TypeError(f"{name} has a {error}") from None
    if struct.calcsize(f"={code}") != ffi.sizeof(name):
        raise TypeError(f"{name} has padding")
    return code
