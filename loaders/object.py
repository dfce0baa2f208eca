# SPDX-License-Identifier: Apache-2.0
"""The compiler's output: bytecode with symbolic references, without file descriptors.

An Object can be stored on disk and linked repeatedly, each time with other maps.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

#: Opcodes (BPF_LD | BPF_IMM | BPF_DW, and BPF_JMP | BPF_CALL).
LD_IMM64 = 0x18
CALL = 0x85


class Insn(NamedTuple):
    """One BPF instruction; ``imm64`` joins both halves of an ld_imm64."""

    at: int
    opcode: int
    src: int
    imm: int
    imm64: int


def instructions(code: bytes) -> Iterator[Insn]:
    """The instructions of ``code``; an ld_imm64 is one instruction."""
    words = list(struct.iter_unpack("<BBhi", code))
    index = 0
    while index < len(words):
        opcode, registers, _, imm = words[index]
        wide = opcode == LD_IMM64
        high = words[index + 1][3] if wide else 0
        yield Insn(index, opcode, registers >> 4, imm, (imm & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32)
        index += 2 if wide else 1


@dataclass(frozen=True)
class MapDef:
    """The parameters of a map: sizes in bytes; ``key_type`` and ``value_type`` are ids in the Object's BTF.

    ``inner`` names the map of the same Object that is the template of a map of maps' values.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    extra: int
    key_type: int
    value_type: int
    inner: str | None = None


@dataclass(frozen=True)
class Relocation:
    """Instruction ``instruction`` refers to the ``kind`` ("map", "kfunc", "constant" or "callback") ``symbol``."""

    instruction: int
    kind: str
    symbol: str


@dataclass(frozen=True)
class Function:
    """One BPF program: little-endian ``struct bpf_insn[]`` and its references."""

    name: str
    code: bytes
    relocations: tuple[Relocation, ...]


@dataclass(frozen=True)
class Object:
    """A compiled source: programs, map definitions, and the BTF of the maps' types."""

    source: str
    functions: dict[str, Function]
    maps: dict[str, MapDef]
    btf: bytes

    def to_bytes(self) -> bytes:
        """JSON."""
        document = {
            "source": self.source,
            "functions": [
                {
                    "name": f.name,
                    "code": _encode(f.code),
                    "relocations": [list(asdict(r).values()) for r in f.relocations],
                }
                for f in self.functions.values()
            ],
            "maps": [asdict(m) for m in self.maps.values()],
            "btf": _encode(self.btf),
        }
        return json.dumps(document).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Object:
        """The inverse of to_bytes; raises ValueError on anything else."""
        try:
            return cls._from_document(json.loads(data))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no compiled object: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Object:
        functions = [
            Function(f["name"], _decode(f["code"]), tuple(Relocation(*r) for r in f["relocations"]))
            for f in document["functions"]
        ]
        maps = [MapDef(**m) for m in document["maps"]]
        return cls(
            document["source"],
            {f.name: f for f in functions},
            {m.name: m for m in maps},
            _decode(document["btf"]),
        )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
