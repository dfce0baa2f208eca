# SPDX-License-Identifier: Apache-2.0
"""Handwritten bytecode in, exact bytes out: the relocations that the compiler records and the linker writes."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from ghostbpf.loaders._bcc import relocations
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.loaders.errors import LinkError
from ghostbpf.loaders.headers import Headers
from ghostbpf.loaders.link import Module
from ghostbpf.loaders.object import Function, Insn, MapDef, Object, Relocation, instructions

LD_IMM64, CALL, MOV, EXIT = 0x18, 0x85, 0xB7, 0x95
ARRAY = 2


def insn(opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhI", opcode, dst | src << 4, off, imm & 0xFFFFFFFF)


def wide(dst: int, src: int, value: int) -> bytes:
    """ld_imm64, both halves."""
    return insn(LD_IMM64, dst, src, imm=value & 0xFFFFFFFF) + insn(0, imm=value >> 32)


# As bcc leaves it: a map of bcc's own (fd 7), kfunc 1, a helper, constant 0, plain numbers, kfunc 0.
CODE = (
    insn(MOV, dst=3, imm=0x40000001)
    + wide(dst=1, src=1, value=7)
    + insn(CALL, imm=0x40000001)
    + insn(CALL, imm=5)
    + wide(dst=9, src=15, value=0)
    + wide(dst=2, src=0, value=0x1_4000_0000)
    + insn(CALL, imm=0x40000000)
    + insn(EXIT)
)
HEADERS = Headers("", ("tcp_reno_ssthresh", "vfs_read"), ("tick",))
FOUND = (
    Relocation(1, "map", "words"),
    Relocation(3, "kfunc", "vfs_read"),
    Relocation(5, "constant", "tick"),
    Relocation(9, "kfunc", "tcp_reno_ssthresh"),
)


def an_object(code: bytes = CODE, found: tuple[Relocation, ...] = FOUND) -> Object:
    words = MapDef("words", ARRAY, 4, 8, 2, 0, 0, 0, 0)
    return Object("hand.bpf.c", {"f": Function("f", code, found)}, {"words": words}, b"")


def kfunc_id(name: str) -> int:
    found = Btf.kernel().find(name, Kind.FUNC)
    assert found is not None
    return found


def test_references_are_found_by_map_descriptor_and_marker() -> None:
    assert relocations(CODE, {7: "words", 8: "others"}, HEADERS) == FOUND


def test_code_without_references_has_no_relocations() -> None:
    code = wide(dst=1, src=0, value=7) + insn(CALL, imm=1) + insn(CALL, src=1, imm=-1) + insn(EXIT)
    assert relocations(code, {7: "words"}, HEADERS) == ()


def test_second_half_of_a_wide_load_is_not_taken_for_an_instruction() -> None:
    # Its immediate may have any value; here it has a call's opcode at the place of an opcode.
    code = insn(LD_IMM64, dst=1, imm=1) + insn(CALL, imm=0x40000000) + insn(CALL, imm=0x40000001)
    assert relocations(code, {}, HEADERS) == (Relocation(2, "kfunc", "vfs_read"),)
    assert [i.at for i in instructions(code)] == [0, 2]


def test_instructions_join_both_halves() -> None:
    code = wide(dst=1, src=2, value=0xFFFFFFFE_80000001) + insn(CALL, src=1, imm=-1)
    assert list(instructions(code)) == [
        Insn(0, LD_IMM64, 2, -(1 << 31) + 1, 0xFFFFFFFE_80000001),
        Insn(2, CALL, 1, -1, 0xFFFFFFFF),
    ]


def test_bind_writes_descriptors_ids_and_values(root: None) -> None:
    with contextlib.closing(Module(an_object(), constants={"tick": 0x0123_4567_89AB_CDEF})) as module:
        words = module.maps["words"]
        assert module.bind(module.object.functions["f"]) == (
            insn(MOV, dst=3, imm=0x40000001)
            + wide(dst=1, src=1, value=words.fd)
            + insn(CALL, src=2, imm=kfunc_id("vfs_read"))
            + insn(CALL, imm=5)
            + wide(dst=9, src=0, value=0x0123_4567_89AB_CDEF)
            + wide(dst=2, src=0, value=0x1_4000_0000)
            + insn(CALL, src=2, imm=kfunc_id("tcp_reno_ssthresh"))
            + insn(EXIT)
        )


def test_bind_leaves_the_object_as_it_was(root: None) -> None:
    obj = an_object()
    with contextlib.closing(Module(obj, constants={"tick": 1})) as module:
        module.bind(obj.functions["f"])
    assert obj == an_object()


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1])
def test_constant_fills_all_64_bits(value: int) -> None:
    # Garbage in the second half must be overwritten.
    code = insn(LD_IMM64, dst=4, src=15) + insn(0, imm=0x55555555) + insn(EXIT)
    module = Module(an_object(code, (Relocation(0, "constant", "tick"),)), constants={"tick": value})
    assert module.bind(module.object.functions["f"]) == wide(dst=4, src=0, value=value) + insn(EXIT)


def test_negative_constant_is_its_two_complement() -> None:
    code = wide(dst=4, src=15, value=0)
    module = Module(an_object(code, (Relocation(0, "constant", "tick"),)), constants={"tick": -2})
    assert module.bind(module.object.functions["f"]) == wide(dst=4, src=0, value=(1 << 64) - 2)


@pytest.mark.parametrize("kind", ["kfunc", "constant"])
def test_reference_to_nothing_is_a_link_error(kind: str) -> None:
    code = insn(CALL, imm=0x40000000) if kind == "kfunc" else wide(1, 15, 0)
    module = Module(an_object(code, (Relocation(0, kind, "no_such_thing"),)))
    with pytest.raises(LinkError, match="no_such_thing") as error:
        module.bind(module.object.functions["f"])
    assert error.value.symbol == "no_such_thing"


def test_object_survives_bytes() -> None:
    obj = an_object()
    assert Object.from_bytes(obj.to_bytes()) == obj
    assert obj.to_bytes() == an_object().to_bytes()


def test_damaged_object_is_refused() -> None:
    document = json.loads(an_object().to_bytes())
    document["functions"][0]["code"] += "!"
    for data in (b"", b"{}", b"[]", b"null", json.dumps(document).encode(), an_object().to_bytes()[:-1]):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Object.from_bytes(data)
