# SPDX-License-Identifier: Apache-2.0
"""Memory that core and agent share: arrays of abi.h structs, where each access by the agent is a point."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ghostbpf.schedulers.core import ffi


class Records:
    """An array like ``loaders.maps.MmapArray`` for agents; the model accesses ``raw``, which is no point."""

    def __init__(self, struct: str, count: int, point: Callable[[], None]) -> None:
        self._size, self._count, self._point = ffi().sizeof(struct), count, point
        self._memory = bytearray(self._size * count)
        self.raw = ffi().from_buffer(f"{struct}[]", self._memory)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        return Record(self.raw[index], self._point)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(self._count))

    def bytes(self, start: int = 0, count: int | None = None) -> memoryview:
        """The memory of some records."""
        end = self._count if count is None else start + count
        return memoryview(self._memory)[start * self._size : end * self._size]

    def view(self, start: int = 0, count: int | None = None) -> View:
        return View(self.bytes(start, count), self._point)


class PlainRecords(Records):
    """An array that only the agent writes, or that it reads in one piece: no access is a point."""

    view = Records.bytes  # type: ignore[assignment]


class Record:
    """One record of an array."""

    def __init__(self, record: Any, point: Callable[[], None]) -> None:
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_point", point)

    def __getattr__(self, name: str) -> Any:
        self._point()
        return getattr(self._record, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._point()
        setattr(self._record, name, value)


class View:
    """A memoryview of an array."""

    def __init__(self, memory: memoryview, point: Callable[[], None]) -> None:
        self._memory, self._point = memory, point

    def cast(self, kind: str) -> View:
        return View(self._memory.cast(kind), self._point)  # type: ignore[call-overload]

    def tolist(self) -> list[int]:
        self._point()
        return self._memory.tolist()

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return View(self._memory[at], self._point)
        self._point()
        return self._memory[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._point()
        self._memory[at] = value


class Ring:
    """A BPF ring buffer of ``capacity`` records; a reserved record delays those after it until it is submitted."""

    def __init__(self, capacity: int, point: Callable[[], None]) -> None:
        self.capacity, self._point = capacity, point
        self.records: deque[list[Any]] = deque()
        self.skipped = self.skipped_length = 0  # it has nothing but messages

    def reserve(self) -> list[Any] | None:
        """A place for a record; None where the ring is full."""
        if len(self.records) >= self.capacity:
            return None
        self.records.append([None])
        return self.records[-1]

    @property
    def empty(self) -> bool:
        """See ``loaders.ring.Ring.empty``."""
        self._point()
        return not self.records

    def read(self) -> list[tuple[Any, ...]]:
        """See ``loaders.ring.Ring.read``."""
        self._point()
        records = []
        while self.records and self.records[0][0] is not None:
            records.append(self.records.popleft()[0])
        self._point()
        return records
