# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as recordings use it.

The protobuf package would do the same with messages that protoc has generated; but a recorder encodes each event of the
scheduler, and joining bytes that were encoded before is several times faster than filling message objects.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1
_U64, _U32 = struct.Struct("<Q"), struct.Struct("<I")

#: The encodings of one byte.
_SMALL = [bytes([value]) for value in range(128)]


class Malformed(ValueError):
    """The bytes are not a message."""


class CutOff(Malformed):
    """The bytes end inside a field."""


def varint(value: int) -> bytes:
    """An integer; a negative one takes ten bytes, as int32 and int64 do."""
    if 0 <= value < 128:
        return _SMALL[value]
    value &= _MASK
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field of type int32, int64, uint32, uint64, bool or enum."""
    return varint(field << 3 | _VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """A field of type fixed64."""
    return varint(field << 3 | _FIXED64) + _U64.pack(value & _MASK)


def data(field: int, value: bytes) -> bytes:
    """A field of type bytes, or a message."""
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def string(field: int, value: str) -> bytes:
    """A field of type string. The kernel's names are bytes of any kind: what is not UTF-8 is replaced."""
    return data(field, value.encode(errors="replace"))


def signed(value: int) -> int:
    """The value of a varint of type int32 or int64."""
    return value - (1 << 64) if value >> 63 else value


def text(value: bytes) -> str:
    """The value of a string."""
    return value.decode(errors="replace")


def read_varint(buffer: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at``, and where the next byte is; raises CutOff and Malformed."""
    value = shift = 0
    while True:
        try:
            byte = buffer[at]
        except IndexError:
            raise CutOff("cut off in a number") from None
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise Malformed("a number of more than 64 bits")


def fields(buffer: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number and value: an integer, or the bytes of a string or message. Raises CutOff and Malformed."""
    at, end = 0, len(buffer)
    while at < end:
        key = buffer[at]
        at += 1
        if key >= 128:
            key, at = read_varint(buffer, at - 1)
        kind = key & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = read_varint(buffer, at)
        elif kind == _BYTES:
            size, at = read_varint(buffer, at)
            if at + size > end:
                raise CutOff("cut off in a field")
            value = buffer[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            unpacked = _U64 if kind == _FIXED64 else _U32
            if at + unpacked.size > end:
                raise CutOff("cut off in a field")
            [value] = unpacked.unpack_from(buffer, at)
            at += unpacked.size
        else:
            raise Malformed(f"a field of the unknown kind {kind}")
        if key < 8:
            raise Malformed("a field without a number")
        yield key >> 3, value


def message(buffer: bytes) -> dict[int, int | bytes]:
    """The fields by number; of a repeated field, the last. Raises as fields()."""
    return dict(fields(buffer))
