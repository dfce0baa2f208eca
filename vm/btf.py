# SPDX-License-Identifier: Apache-2.0
"""Judges a kernel image: bzImage payload, .BTF section, and whether programs can call its sched_ext kfuncs."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from dataclasses import dataclass
from typing import Any

import cffi

from ..loaders import kfuncs
from ..loaders.btf import Btf, Kind
from .errors import ImageError

_ZSTD = cffi.FFI()
_ZSTD.cdef(
    """
    size_t ZSTD_findFrameCompressedSize(const void *source, size_t size);
    size_t ZSTD_decompress(void *target, size_t target_size, const void *source, size_t size);
    """
)


@dataclass(frozen=True)
class Verdict:
    """Whether a kernel has sched_ext, and the kfuncs whose prototype is malformed, which no program can call."""

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

    The set-up header has the payload's offset (Documentation/arch/x86/boot.rst, payload_offset).
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
    # Python has zstd from 3.14 on only; dpkg needs libzstd, so each Debian machine has it.
    try:
        zstd: Any = _ZSTD.dlopen("libzstd.so.1")
    except OSError:
        raise ImageError("libzstd.so.1 is not installed", "apt install libzstd1") from None
    frame = zstd.ZSTD_findFrameCompressedSize(data, len(data))
    if frame > len(data):
        raise ImageError("kernel payload is a damaged zstd frame")
    out = bytearray(size)
    if zstd.ZSTD_decompress(_ZSTD.from_buffer(out), size, data, frame) != size:
        raise ImageError("kernel payload is a damaged zstd frame")
    return bytes(out)


def section(elf: bytes, name: str) -> bytes | None:
    """The section `name` of a 64-bit little-endian ELF file, or None."""
    offset = struct.unpack_from("<Q", elf, 0x28)[0]
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, offset + i * entry) for i in range(count)]
    wanted = name.encode() + b"\0"
    for head in heads:
        at = heads[names][4] + head[0]
        if elf[at : at + len(wanted)] == wanted:
            return elf[head[4] : head[4] + head[5]]
    return None


def btf_section(elf: bytes) -> bytes | None:
    """The .BTF section of a 64-bit little-endian ELF file, or None."""
    return section(elf, ".BTF")


def release_and_version(elf: bytes) -> tuple[str, str]:
    """What uname(2) reports of an ELF kernel, which prints it when it boots; raises ImageError."""
    banner = re.search(rb"Linux version (\d\S*) [^\n\0]* (#\d[^\n\0]*)\n", elf)
    if banner is None:
        raise ImageError("the kernel does not tell its version")
    return banner[1].decode(), banner[2].decode()


def judge(blob: bytes) -> Verdict:
    """Judge a kernel by its BTF blob; raises ImageError for anything else."""
    try:
        btf = Btf.parse(blob)
    except ValueError as error:
        raise ImageError(f"the kernel's types cannot be read: {error}") from None
    return Verdict(btf.find("sched_ext_ops", Kind.STRUCT) is not None, kfuncs.judge(btf).malformed)
