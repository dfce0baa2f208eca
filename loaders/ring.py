# SPDX-License-Identifier: Apache-2.0
"""A BPF ring buffer of records of one size, read in bulk from mapped memory.

``maps.RingBuffer`` calls back for each record; here, a read unpacks all records in one pass of ``struct``, without a
system call, for a reader that must keep up with the scheduler.
"""

from __future__ import annotations

import mmap
import struct
import sys
from typing import Any

from .errors import BpfError, GhostError
from .maps import Map

_HEADER = 8
_PAGE = mmap.PAGESIZE
#: Bits of a record's header: it is still being written, or was discarded. See bpf_ringbuf in kernel/bpf/ringbuf.c.
_BUSY, _DISCARDED = 1 << 31, 1 << 30


class Ring:
    """The only reader of ring buffer ``source``, whose records have the ``struct`` format ``fields`` (no prefix).

    Raises BpfError if the map is not a ring buffer.
    """

    def __init__(self, source: Map, fields: str) -> None:
        self._record = struct.Struct(f"=I4x{fields}")
        if self._record.size % 8:
            raise TypeError(f"a record of {self._record.size - _HEADER} bytes: make it a multiple of 8")
        size = source.definition.max_entries
        try:
            self._positions = mmap.mmap(source.fd, _PAGE)
            self._ring = mmap.mmap(source.fd, _PAGE + 2 * size, prot=mmap.PROT_READ, offset=_PAGE)
        except (OSError, ValueError) as error:
            raise BpfError(f"map ring buffer {source.definition.name}", getattr(error, "errno", 0) or 0) from None
        self._source, self._mask = source, size - 1
        self._length = self._record.size - _HEADER
        self._consumed = memoryview(self._positions).cast("Q")
        self._produced = memoryview(self._ring)[:_PAGE].cast("Q")
        # The kernel maps the data twice in a row, so that records that wrap around are contiguous.
        self._data = memoryview(self._ring)[_PAGE:]
        #: How many records of another length were skipped, and the last such length.
        self.skipped, self.skipped_length = 0, 0

    def read(self) -> list[tuple[Any, ...]]:
        """Consume all complete records, in order: each is the header (ignore it), then the fields.

        It skips records of another length. Raises GhostError if the ring cannot be right.
        """
        records = self._read()
        while self.skip():
            records += self._read()
        return records

    def _read(self) -> list[tuple[Any, ...]]:
        at, start, size = self._unread()
        if not size:
            return []
        records = list(self._record.iter_unpack(self._data[start : start + size]))
        length = self._length
        for count, record in enumerate(records):
            if record[0] != length:
                del records[count:]
                break
        self._consumed[0] = at + len(records) * self._record.size
        return records

    def _unread(self) -> tuple[int, int, int]:
        """Up to where records are consumed, where the next is in the data, and how many bytes of whole ones follow."""
        at, end = self._consumed[0], self._produced[0]
        if not 0 <= end - at <= self._mask + 1 or (at | end) % 8:
            raise self._corrupt(f"consumed up to {at}, produced up to {end}, with {self._mask + 1} bytes")
        return at, at & self._mask, (end - at) // self._record.size * self._record.size

    def skip(self) -> bool:
        """Consume the next record if it has another length or was discarded; whether it did.

        A record that is still being written, and those after it, stay for later. Raises GhostError if the ring cannot
        be right.
        """
        at, start, _ = self._unread()
        if at == (end := self._produced[0]):
            return False
        header = int.from_bytes(self._data[start : start + 4], sys.byteorder)
        if header & _BUSY:
            return False
        length = header & ~_DISCARDED
        size = _HEADER + -(-length // 8) * 8
        if size > end - at:
            raise self._corrupt(f"a record of {length} bytes at {at}, produced up to {end}")
        if header == self._length:
            return False
        self._consumed[0] = at + size
        if not header & _DISCARDED:
            self.skipped += 1
            self.skipped_length = length
        return True

    def _corrupt(self, what: str) -> GhostError:
        return GhostError(
            f"ring buffer {self._source.definition.name} is corrupt: {what}",
            hint="find what else writes to this map: bpftool map",
        )

    def read_bytes(self) -> bytes:
        """Consume all complete records, in order, without unpacking: each is a header of 8 bytes, then the fields.

        It skips and raises as read() does.
        """
        records = self._read_bytes()
        while self.skip():
            records += self._read_bytes()
        return records

    def _read_bytes(self) -> bytes:
        at, start, whole = self._unread()
        size = self._record.size
        headers = self._data[start : start + whole].cast("I")[:: size // 4].tolist()
        count = len(headers)
        if headers.count(self._length) != count:
            count = next(n for n, header in enumerate(headers) if header != self._length)
        records = bytes(self._data[start : start + count * size])
        self._consumed[0] = at + count * size
        return records

    @property
    def empty(self) -> bool:
        """Whether the buffer has no record."""
        return self._consumed[0] == self._produced[0]

    @property
    def memory(self) -> tuple[memoryview, memoryview, memoryview]:
        """For another reader: up to where records are consumed, up to where produced, and the data, twice in a row."""
        return self._consumed, self._produced, self._data

    def fileno(self) -> int:
        """A descriptor for epoll: readable while the buffer has records."""
        return self._source.fd


class RingTail:
    """Reads a ring buffer beside its reader, without consuming records; all have the ``struct`` format ``fields``.

    The kernel overwrites what the reader has consumed, so a tail that is not read often enough loses records. It begins
    with the oldest record that is still there if ``from_start``, else with the next one.
    """

    def __init__(self, source: Map, fields: str, *, from_start: bool) -> None:
        self._record = struct.Struct(f"=I4x{fields}")
        self._size = source.definition.max_entries
        self._memory = mmap.mmap(source.fd, _PAGE + 2 * self._size, prot=mmap.PROT_READ, offset=_PAGE)
        self._produced = memoryview(self._memory)[:_PAGE].cast("Q")
        self._data = memoryview(self._memory)[_PAGE:]
        self._at = 0 if from_start else self._produced[0]

    def read(self) -> tuple[list[tuple[Any, ...]], int]:
        """The complete records since the last call, as Ring.read() has them, and the number of those that were lost."""
        size, length = self._record.size, self._record.size - _HEADER
        end = self._produced[0]
        lost = self._skip(end)
        start = self._at & (self._size - 1)
        copied, at = bytes(self._data[start : start + end - self._at]), self._at
        # The kernel may have overwritten the first of them meanwhile.
        more = self._skip(self._produced[0])
        records = list(self._record.iter_unpack(copied[min(self._at - at, len(copied)) :]))
        for count, record in enumerate(records):
            if record[0] != length:
                del records[count:]
                break
        self._at += len(records) * size
        return records, lost + more

    def _skip(self, end: int) -> int:
        """Go on to what a ring that is written up to ``end`` still has; returns how many records that leaves out."""
        lost = max(-(-(end - self._size - self._at) // self._record.size), 0)
        self._at += lost * self._record.size
        return lost
