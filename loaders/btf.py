# SPDX-License-Identifier: Apache-2.0
"""The running kernel's types, by name: struct members, enum values, function prototypes, C declarations.

Whatever differs between kernels (ids, offsets, indexes, enum values, kfunc prototypes) is looked up here by
name at run time; no module keeps a table of it.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from . import libc
from ._libbpf import ffi, lib, opts
from ._libbpf import text as c_text
from .errors import KernelUnsupported

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_NOTES = Path("/sys/kernel/notes")
_UNAME = [Path("/proc/sys/kernel", name) for name in ("osrelease", "version")]

# struct btf_header. ELF notes (elf(5)): the sizes of name and content, and the type.
_HEADER, _NOTE = struct.Struct("=HBBIIIII"), struct.Struct("=III")
_NT_GNU_BUILD_ID = 3


class Kind(IntEnum):
    """BTF kinds (kernel include/uapi/linux/btf.h)."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# The 32-bit words that follow a type's header: per entry, or a fixed number.
_ENTRY_WORDS = [0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3]
_FIXED_WORDS = [0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]

_MODIFIERS = {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}


@dataclass(frozen=True)
class Member:
    """A struct member: ``index`` in the struct, ``offset`` and ``size`` in bytes, and ``type_id``."""

    name: str
    index: int
    offset: int
    type_id: int
    size: int


@dataclass(frozen=True)
class Param:
    """A function parameter."""

    name: str
    type_id: int


class Btf:
    """One BTF blob; ``Btf.kernel()`` is the running kernel's."""

    def __init__(self, handle: Any) -> None:
        self._btf = ffi.gc(handle, lib.btf__free)
        self._ids: dict[tuple[str, Kind], int] = {}

    @classmethod
    @functools.cache
    def kernel(cls) -> Btf:
        """The running kernel's types; raises KernelUnsupported if it was built without BTF."""
        handle = lib.btf__load_vmlinux_btf()
        if handle == ffi.NULL:
            raise KernelUnsupported(
                "BTF", f"no kernel types at {VMLINUX}", hint="boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
            )
        return cls(handle)

    @classmethod
    def parse(cls, data: bytes) -> Btf:
        """BTF from raw bytes; raises ValueError for anything else."""
        handle = lib.btf__new(data, len(data))
        if handle == ffi.NULL:
            raise ValueError(f"not BTF: {len(data)} bytes starting with {data[:4].hex()}")
        return cls(handle)

    def __len__(self) -> int:
        return int(lib.btf__type_cnt(self._btf))

    def find(self, name: str, *kinds: Kind) -> int | None:
        """The id of the type ``name`` of the first of ``kinds`` that has it, or None."""
        for kind in kinds:
            if (name, kind) not in self._ids:
                self._ids[name, kind] = lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
            if self._ids[name, kind] > 0:
                return self._ids[name, kind]
        return None

    def struct_id(self, name: str) -> int:
        """The id of ``struct name``; raises KernelUnsupported if the kernel has no such struct."""
        type_id = self.find(name, Kind.STRUCT)
        if type_id is None:
            raise KernelUnsupported(f"struct {name}", f"this kernel has no struct {name}")
        return type_id

    def kind(self, type_id: int) -> Kind:
        """The kind of a type."""
        return Kind(self._type(type_id).info >> 24 & 0x1F)

    def name(self, type_id: int) -> str:
        """The name of a type; empty if it has none."""
        return self._string(self._type(type_id).name_off)

    def size(self, type_id: int) -> int:
        """The size of a type in bytes."""
        return int(lib.btf__resolve_size(self._btf, type_id))

    def target(self, type_id: int) -> int:
        """The type that a pointer, typedef, modifier, function or tag refers to."""
        return int(self._type(type_id).size_or_type)

    def resolve(self, type_id: int) -> int:
        """``type_id`` without typedefs and qualifiers."""
        while type_id and self.kind(type_id) in _MODIFIERS:
            type_id = self.target(type_id)
        return type_id

    def members(self, type_id: int) -> dict[str, Member]:
        """The named members of a struct or union, in order."""
        type_id = self.resolve(type_id)
        bitfields = bool(self._type(type_id).info >> 31)
        members = {}
        for index, (name_off, member_type, offset) in enumerate(self._entries(type_id, "III")):
            if name := self._string(name_off):
                bits = offset & 0xFFFFFF if bitfields else offset
                members[name] = Member(name, index, bits // 8, member_type, self.size(member_type))
        return members

    def enum(self, name: str) -> dict[str, int]:
        """The enumerators of ``enum name`` and their values; raises KernelUnsupported if the kernel has none."""
        type_id = self.find(name, Kind.ENUM, Kind.ENUM64)
        if type_id is None:
            raise KernelUnsupported(f"enum {name}", f"this kernel has no enum {name}")
        value = "Q" if self.kind(type_id) is Kind.ENUM64 else "I"
        signed = bool(self._type(type_id).info >> 31)
        return {self._string(n): v for n, v in self._entries(type_id, "I" + (value.lower() if signed else value))}

    @functools.cached_property
    def enumerators(self) -> dict[str, int]:
        """The enumerators of all enums, also of nameless ones, and their values. Walks all types, which takes 0.2 s."""
        words, string = self._words_and_strings()
        values = {}
        for at, kind in _headers(words, {Kind.ENUM, Kind.ENUM64}):
            info, entry = words[at + 1], _ENTRY_WORDS[kind]
            for i in range(at + 3, at + 3 + (info & 0xFFFF) * entry, entry):
                value = words[i + 1] | (words[i + 2] << 32 if kind == Kind.ENUM64 else 0)
                values[string(words[i])] = _signed(value, 32 * (entry - 1)) if info >> 31 else value
        return values

    def names(self, kind: Kind) -> set[str]:
        """The names of all types of one kind. Walks all types."""
        words, string = self._words_and_strings()
        return {string(words[at]) for at, _ in _headers(words, {kind})}

    def params(self, func_id: int) -> list[Param]:
        """The parameters of a FUNC or FUNC_PROTO."""
        proto = self.target(func_id) if self.kind(func_id) is Kind.FUNC else func_id
        return [Param(self._string(name_off), type_id) for name_off, type_id in self._entries(proto, "II")]

    def declare(self, type_ids: Iterable[int], functions: dict[str, int]) -> str:
        """C declarations of ``type_ids`` and their dependencies, then of ``functions`` (name to FUNC id).

        Each function ``f`` is declared as a type: ``typedef R f__t(A, B);`` with its prototype.
        """
        buffer, length = ffi.new("char **"), ffi.new("size_t *")
        stream = libc.lib.open_memstream(buffer, length)
        dump = lib.btf_dump__new(self._btf, libc.ffi.addressof(libc.lib, "vfprintf"), stream, ffi.NULL)
        try:
            for type_id in type_ids:
                lib.btf_dump__dump_type(dump, type_id)
            for func_id in functions.values():
                for used in [self.target(self.target(func_id)), *(p.type_id for p in self.params(func_id))]:
                    if used:
                        lib.btf_dump__dump_type(dump, used)
            for name, func_id in functions.items():
                libc.lib.fputs(b"typedef ", stream)
                field = ffi.new("char[]", f"{name}__t".encode())
                declaration = opts("btf_dump_emit_type_decl_opts", field_name=field)
                lib.btf_dump__emit_type_decl(dump, self.target(func_id), declaration)
                libc.lib.fputs(b";\n", stream)
        finally:
            lib.btf_dump__free(dump)
            libc.lib.fclose(stream)
        text = c_text(buffer[0])
        libc.lib.free(buffer[0])
        return text

    def _words_and_strings(self) -> tuple[tuple[int, ...], Callable[[int], str]]:
        size = ffi.new("__u32 *")
        blob = lib.btf__raw_data(self._btf, size)
        data = bytes(ffi.buffer(blob, size[0]))
        _, _, _, header, type_off, type_len, string_off, string_len = _HEADER.unpack_from(data)
        strings = data[header + string_off : header + string_off + string_len]
        words = struct.unpack_from(f"={type_len // 4}I", data, header + type_off)
        return words, lambda offset: strings[offset : strings.index(0, offset)].decode()

    def _type(self, type_id: int) -> Any:
        header = lib.btf__type_by_id(self._btf, type_id)
        if header == ffi.NULL:
            raise ValueError(f"no BTF type {type_id}")
        return header

    def _string(self, offset: int) -> str:
        return c_text(lib.btf__name_by_offset(self._btf, offset))

    def _entries(self, type_id: int, layout: str) -> list[tuple[int, ...]]:
        header = self._type(type_id)
        count, entry = header.info & 0xFFFF, struct.Struct("=" + layout)
        return list(entry.iter_unpack(bytes(ffi.buffer(header + 1, count * entry.size))))


def _headers(words: tuple[int, ...], kinds: Collection[int]) -> Iterator[tuple[int, int]]:
    """The index in ``words`` of each type of one of ``kinds``, with its kind."""
    at = 0
    while at < len(words):
        info = words[at + 1]
        kind = info >> 24 & 0x1F
        if kind in kinds:
            yield at, kind
        at += 3 + (_FIXED_WORDS[kind] or (info & 0xFFFF) * _ENTRY_WORDS[kind])


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


@functools.cache
def identity() -> str:
    """A hash of what tells the running kernel's BTF from that of another kernel, which is part of the caches' keys.

    The build id is itself a hash of the kernel's image, BTF included. Only without one is all of the BTF hashed here,
    which takes 100 M instructions. The release, the version and BTF's header, which has the lengths of its parts, tell
    kernels apart whose build ids are equal by mistake.
    """
    try:
        with VMLINUX.open("rb") as file:
            build_id = _build_id()
            data = file.read(_HEADER.size if build_id else -1)
        parts = [build_id, *(path.read_bytes() for path in _UNAME), data]
    except OSError as error:
        raise KernelUnsupported(
            "BTF",
            f"cannot read {error.filename}: {error.strerror}",
            hint="boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ) from None
    return hashlib.blake2b(b"".join(struct.pack("=Q", len(part)) + part for part in parts), digest_size=8).hexdigest()


def _build_id() -> bytes:
    """The running kernel's GNU build id; empty if it has none."""
    try:
        notes = _NOTES.read_bytes()
    except OSError:
        return b""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name = at + _NOTE.size
        content = name + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name:content] == b"GNU\0" and content + size <= len(notes):
            return notes[content : content + size]
        at = content + (size + 3 & ~3)
    return b""
