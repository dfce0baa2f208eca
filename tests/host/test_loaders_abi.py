# SPDX-License-Identifier: Apache-2.0
"""One header for both sides: Python reads the same layout from it that the C compiler makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.compiler import compile

HEADER = """\
#ifndef SHARED_H
#define SHARED_H

#define SLOTS 4
#define MASK 0xff00 /* hexadecimal, with a comment */
#define TEXT "not a number"
#define TWICE(x) ((x) * 2)

enum state { IDLE, BUSY = 7, DONE, };

struct inner { u8 small; u16 half; };
struct mixed {
    u8 first;
    u64 wide;
    s32 sign;
    struct inner nested[SLOTS];
    u16 tail;
    enum state state;
};
union either { u64 word; u8 bytes[8]; };

#endif
"""


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "shared.h"
    path.write_text(HEADER)
    return path


def test_both_sides_lay_structs_out_alike(bpf_source: Callable[..., Path], header: Path) -> None:
    ffi, checks = abi.load(header), []
    for name in ("struct inner", "struct mixed", "union either"):
        checks.append(f'_Static_assert(sizeof({name}) == {ffi.sizeof(name)}, "{name}");')
        for field, _ in ffi.typeof(name).fields:
            offset = ffi.offsetof(name, field)
            checks.append(f'_Static_assert(__builtin_offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    assert len(checks) == 13
    compile(bpf_source('#include "shared.h"\n' + "\n".join(checks)))


def test_numbers_and_enumerators_have_their_values(header: Path) -> None:
    lib: Any = abi.load(header).dlopen(None)
    assert (lib.SLOTS, lib.MASK) == (4, 0xFF00)
    assert (lib.IDLE, lib.BUSY, lib.DONE) == (0, 7, 8)
    assert not hasattr(lib, "TEXT")


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_integers_have_the_kernels_names(bits: int) -> None:
    ffi = abi.load()
    assert int(ffi.cast(f"u{bits}", -1)) == (1 << bits) - 1
    assert int(ffi.cast(f"s{bits}", (1 << bits) - 1)) == -1


def test_headers_may_build_on_each_other(header: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.h"
    more.write_text('#include "shared.h"\nstruct pair { struct inner a, b; };\n')
    ffi = abi.load(header, more)
    assert ffi.sizeof("struct pair") == 2 * ffi.sizeof("struct inner")


def test_a_header_is_read_once(header: Path) -> None:
    assert abi.load(header) is abi.load(header)
