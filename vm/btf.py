# SPDX-License-Identifier: Apache-2.0
"""Enough of a kernel image to judge it: bzImage payload, .BTF section, and whether its sched_ext kfuncs are sound."""

from __future__ import annotations

import ctypes
import gzip
import lzma
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ImageError

_PTR, _STRUCT, _CONST, _FUNC, _FUNC_PROTO = 2, 4, 10, 12, 13
# Bytes that follow the 12-byte head of each BTF kind that has any: (fixed, per element). include/uapi/linux/btf.h
_TAILS = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}

_SCX_KFUNC = re.compile(r"(scx_bpf_|__scx_bpf_|bpf_iter_scx_)")


@dataclass(frozen=True)
class Verdict:
    """What a kernel's BTF says of it: has it sched_ext, and which of its kfuncs no program can call."""

    sched_ext: bool
    malformed: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a scheduler can be loaded into it."""
        return self.sched_ext and not self.malformed

    @property
    def reason(self) -> str:
        """Why it is not usable; empty if it is."""
        if not self.sched_ext:
            return "no sched_ext"
        return f"{len(self.malformed)} malformed kfuncs" if self.malformed else ""


def vmlinux_of(image: bytes) -> bytes:
    """The uncompressed ELF kernel inside a bzImage (or `image` itself if it is one); raises ImageError.

    The payload's place is in the set-up header (Documentation/arch/x86/boot.rst, payload_offset).
    """
    if image[:4] == b"\x7fELF":
        return image
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise ImageError("not a kernel image: neither ELF nor bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    # The build appends the uncompressed size to every payload.
    size = struct.unpack_from("<I", payload, len(payload) - 4)[0] if len(payload) > 8 else 0
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        kernel = _unzstd(payload, size)
    elif payload[:6] == b"\xfd7zXZ\x00":
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload[:2] == b"\x1f\x8b":
        kernel = gzip.decompress(payload[:-4])
    else:
        raise ImageError(f"kernel payload starts with {payload[:4].hex()}: neither zstd, xz nor gzip")
    if kernel[:4] != b"\x7fELF":
        raise ImageError("kernel payload is not ELF")
    return kernel


def _unzstd(data: bytes, size: int) -> bytes:
    # Python has no zstd before 3.14, but dpkg itself needs the library, so every Debian machine has it.
    try:
        zstd = ctypes.CDLL("libzstd.so.1")
    except OSError:
        raise ImageError("libzstd.so.1 is not installed", "apt install libzstd1") from None
    zstd.ZSTD_findFrameCompressedSize.restype = zstd.ZSTD_decompress.restype = ctypes.c_size_t
    zstd.ZSTD_findFrameCompressedSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    zstd.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    frame = zstd.ZSTD_findFrameCompressedSize(data, len(data))
    out = bytearray(size)
    if frame > len(data):
        raise ImageError("kernel payload is a damaged zstd frame")
    place = (ctypes.c_char * size).from_buffer(out)
    if zstd.ZSTD_decompress(place, size, data, frame) != size:
        raise ImageError("kernel payload is a damaged zstd frame")
    return bytes(out)


def btf_section(elf: bytes) -> bytes | None:
    """The .BTF section of a 64-bit little-endian ELF file, or None."""
    offset = struct.unpack_from("<Q", elf, 0x28)[0]
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, offset + i * entry) for i in range(count)]
    for head in heads:
        at = heads[names][4] + head[0]
        if elf[at : at + 5] == b".BTF\0":
            return elf[head[4] : head[4] + head[5]]
    return None


class Btf:
    """A walker over one BTF blob: types by id, and just the questions asked here."""

    def __init__(self, blob: bytes) -> None:
        magic, _, _, head, types, types_len, strings, strings_len = struct.unpack_from("<HBBIIIII", blob)
        if magic != 0xEB9F:
            raise ImageError(f"BTF magic is {magic:#x}, not 0xeb9f")
        self._blob = blob
        self._strings = blob[head + strings : head + strings + strings_len]
        self._at = [0]
        at, end = head + types, head + types + types_len
        while at < end:
            self._at.append(at)
            info = struct.unpack_from("<I", blob, at + 4)[0]
            fixed, each = _TAILS.get(info >> 24 & 0x1F, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def _head(self, number: int) -> tuple[int, str, int, int]:
        name, info, size = struct.unpack_from("<III", self._blob, self._at[number])
        end = self._strings.index(b"\0", name)
        return info >> 24 & 0x1F, self._strings[name:end].decode(), info & 0xFFFF, size

    def of_kind(self, kind: int) -> Iterator[tuple[str, int]]:
        """Name and referred-to type (or size) of every type of `kind`."""
        for number in range(1, len(self._at)):
            if self._blob[self._at[number] + 7] & 0x1F == kind:
                _, name, _, size = self._head(number)
                yield name, size

    def last_parameter_is_aux(self, prototype: int) -> bool:
        """Whether a FUNC_PROTO's last parameter is `[const] struct bpf_prog_aux *`."""
        kind, _, count, _ = self._head(prototype)
        if kind != _FUNC_PROTO or not count:
            return False
        number = struct.unpack_from("<I", self._blob, self._at[prototype] + 12 + 8 * (count - 1) + 4)[0]
        kind, _, _, target = self._head(number) if number else (0, "", 0, 0)
        if kind != _PTR:
            return False
        kind, name, _, inner = self._head(target) if target else (0, "", 0, 0)
        if kind == _CONST:
            kind, name, _, _ = self._head(inner) if inner else (0, "", 0, 0)
        return kind == _STRUCT and name == "bpf_prog_aux"


def judge(blob: bytes) -> Verdict:
    """Judge a kernel by its BTF blob.

    From Linux 7.1 on most sched_ext kfuncs take an implicit `struct bpf_prog_aux *`, which the build removes from the
    prototype a program sees (it stays under NAME_impl). pahole before 1.31 loses the tag that asks for this from some
    functions at random, differently in each build; the verifier then refuses every program that calls one of them.
    """
    btf = Btf(blob)
    malformed = sorted(
        name
        for name, prototype in btf.of_kind(_FUNC)
        if _SCX_KFUNC.match(name) and not name.endswith("_impl") and btf.last_parameter_is_aux(prototype)
    )
    return Verdict(any(name == "sched_ext_ops" for name, _ in btf.of_kind(_STRUCT)), tuple(malformed))
