# SPDX-License-Identifier: Apache-2.0
"""Typed views of BPF maps, with the types of the C source.

Keys and values are cffi types of the FFI (``abi.load``): scalars are int, structs are cdata.

    counts = Hash(module.maps["counts"], ffi, "u32", "u64")
    counts[3] += 1
    stats = PerCpuArray(module.maps["stats"], ffi, "struct counters")
    sum(cpu.switches for cpu in stats[0])
    with MmapArray(module.maps["enclaves"], ffi, "struct enclave") as enclaves:
        enclaves[1].state = 2            # a store into shared memory, without a system call
"""

from __future__ import annotations

import errno
import functools
import mmap
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from . import _libbpf, kernel_types
from ._libbpf import check, info_by_fd, lib
from .closing import Closing
from .errors import BpfError
from .handle import Handle, open_pinned
from .object import MapDef
from .uapi import BPF_F_MMAPABLE


class Map(Handle):
    """A map of any type; ``definition`` is what the kernel reports of it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        info = info_by_fd(fd)
        kind, _, key_size, value_size, entries, flags = struct.unpack_from("=6I", info)
        name = info[24:40].split(b"\0")[0].decode()
        self.definition = MapDef(name, kind, key_size, value_size, entries, flags, 0, 0, 0)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The map pinned at ``path``."""
        return cls(open_pinned(path))

    @classmethod
    def by_id(cls, id: int) -> Self:
        """The map ``id``, which is what a map of maps has as the value; raises BpfError, also without CAP_SYS_ADMIN."""
        return cls(check(lib.bpf_map_get_fd_by_id(id), f"open BPF map {id}"))


class Hash:
    """A map with one value for each key: hash, LRU hash, array, task storage (keyed by pidfd)."""

    def __init__(self, source: Map, ffi: Any, key: str, value: str) -> None:
        self.map, self._ffi, self._key, self._value = source, ffi, f"{key} *", f"{value} *"
        if _is_per_cpu(source.definition.type):
            raise TypeError(f"map {source.definition.name} holds a value for each CPU")
        for ctype, size in ((key, source.definition.key_size), (value, source.definition.value_size)):
            if ffi.sizeof(ctype) != size:
                raise TypeError(f"map {source.definition.name} holds {size} bytes where {ctype} is {ffi.sizeof(ctype)}")

    def get(self, key: Any) -> Any | None:
        """A copy of the value at ``key``, or None."""
        value = self._ffi.new(self._value)
        result = lib.bpf_map_lookup_elem(self.map.fd, self._ffi.new(self._key, key), value)
        if result == -errno.ENOENT:
            return None
        check(result, f"look up {key} in map {self.map.definition.name}")
        # A struct's cdata does not keep its memory alive; the pointer to it does.
        return value[0] if isinstance(value[0], int) else value

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, self._ffi.CData) and self._ffi.typeof(value).kind == "pointer":
            value = value[0]
        new = self._ffi.new(self._value, value)
        result = lib.bpf_map_update_elem(self.map.fd, self._ffi.new(self._key, key), new, 0)
        check(result, f"set {key} in map {self.map.definition.name}")

    def __delitem__(self, key: Any) -> None:
        result = lib.bpf_map_delete_elem(self.map.fd, self._ffi.new(self._key, key))
        if result == -errno.ENOENT:
            raise KeyError(key)
        check(result, f"delete {key} from map {self.map.definition.name}")

    def __iter__(self) -> Iterator[Any]:
        key, following = self._ffi.NULL, self._ffi.new(self._key)
        while (result := lib.bpf_map_get_next_key(self.map.fd, key, following)) == 0:
            yield following[0]
            key, following = following, self._ffi.new(self._key)
        if result != -errno.ENOENT:
            check(result, f"walk map {self.map.definition.name}")

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Each key with its value, without keys that are deleted meanwhile."""
        for key in self:
            if (value := self.get(key)) is not None:
                yield key, value

    def values(self) -> Iterator[Any]:
        """Each value, as items()."""
        return (value for _, value in self.items())


class Array(Hash):
    """An array map, indexed from 0."""

    def __init__(self, source: Map, ffi: Any, value: str) -> None:
        super().__init__(source, ffi, "u32", value)

    def __len__(self) -> int:
        return self.map.definition.max_entries


class PerCpuArray:
    """A per-CPU array: each index has the values of all possible CPUs, in CPU order."""

    def __init__(self, source: Map, ffi: Any, value: str) -> None:
        self.map, self._ffi = source, ffi
        size = source.definition.value_size
        if ffi.sizeof(value) != size or size % 8:
            raise TypeError(f"map {source.definition.name} holds {size} bytes where {value} is {ffi.sizeof(value)}")
        self._type = f"{value}[{possible_cpus()}]"

    def __len__(self) -> int:
        return self.map.definition.max_entries

    def __getitem__(self, index: int) -> Any:
        values = self._ffi.new(self._type)
        result = lib.bpf_map_lookup_elem(self.map.fd, self._ffi.new("u32 *", index), values)
        if result == -errno.ENOENT:
            raise IndexError(index)
        check(result, f"look up {index} in map {self.map.definition.name}")
        return values

    def clear(self, index: int) -> None:
        """Set the values of all CPUs at ``index`` to 0."""
        result = lib.bpf_map_update_elem(self.map.fd, self._ffi.new("u32 *", index), self._ffi.new(self._type), 0)
        check(result, f"clear {index} in map {self.map.definition.name}")


# A record is a view of its array's memory and does not keep it mapped: this keeps the array while a record exists.
_mapped: weakref.WeakKeyDictionary[Any, MmapArray] = weakref.WeakKeyDictionary()


class MmapArray(Closing):
    """A mapped array of records: a read is a load and an assignment is a store, without a system call."""

    def __init__(self, source: Map, ffi: Any, value: str) -> None:
        definition = source.definition
        size = definition.value_size
        if not definition.flags & BPF_F_MMAPABLE or ffi.sizeof(value) != size or size % 8:
            raise TypeError(f"map {definition.name} cannot be mapped as {value}[{definition.max_entries}]")
        self.map = source
        self._memory = mmap.mmap(source.fd, size * definition.max_entries)
        self._records = ffi.from_buffer(f"{value}[]", self._memory)
        self._ffi = ffi

    def __len__(self) -> int:
        return self.map.definition.max_entries

    def __getitem__(self, index: int) -> Any:
        record = self._records[index]
        if isinstance(record, self._ffi.CData):
            _mapped[record] = self
        return record

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def view(self, start: int = 0, count: int | None = None) -> memoryview:
        """The memory of ``count`` records (default: the rest) from ``start`` on."""
        size = self.map.definition.value_size
        end = len(self) if count is None else start + count
        return memoryview(self._memory)[start * size : end * size]

    def close(self) -> None:
        """Unmap; records of this array must not be used afterwards."""
        self._ffi.release(self._records)
        self._memory.close()


class RingBuffer:
    """Passes each record of a ring buffer map to ``receive`` as bytes, in order.

    An exception of ``receive`` ends the delivery and is raised by poll() or consume(); its record is consumed.
    """

    def __init__(self, source: Map, receive: Callable[[bytes], None]) -> None:
        ffi = _libbpf.ffi
        # cffi would print an exception and continue. The list avoids a reference cycle through self.
        raised: list[BaseException] = []

        def sample(_context: object, data: object, size: int) -> int:
            try:
                receive(bytes(ffi.buffer(data, size)))
            except BaseException as error:
                raised.append(error)
                return -errno.ECANCELED
            return 0

        # libbpf keeps a pointer to the callback, not a reference.
        self._callback = ffi.callback("ring_buffer_sample_fn", sample)
        self._map, self._raised = source, raised
        ring = lib.ring_buffer__new(source.fd, self._callback, ffi.NULL, ffi.NULL)
        if ring == ffi.NULL:
            raise BpfError(f"open ring buffer {source.definition.name}", ffi.errno)
        self._ring = ffi.gc(ring, lib.ring_buffer__free)

    def poll(self, timeout_ms: int) -> int:
        """Wait up to ``timeout_ms`` (-1: without limit), deliver all records, and return their number."""
        return self._delivered(lib.ring_buffer__poll(self._ring, timeout_ms))

    def consume(self) -> int:
        """Deliver all records without waiting, and return their number."""
        return self._delivered(lib.ring_buffer__consume(self._ring))

    def fileno(self) -> int:
        """A descriptor for select and epoll."""
        return int(lib.ring_buffer__epoll_fd(self._ring))

    def close(self) -> None:
        """Stop reading; the map stays open."""
        _libbpf.ffi.release(self._ring)

    def _delivered(self, result: int) -> int:
        if self._raised:
            raise self._raised.pop()
        return 0 if result == -errno.EINTR else check(result, "read a ring buffer")


@functools.cache
def _is_per_cpu(map_type: int) -> bool:
    """Whether the kernel writes a value for each CPU where a map of this type is read."""
    types = kernel_types.enum("bpf_map_type")
    return any(number == map_type and "PERCPU" in name for name, number in types.items())


def possible_cpus() -> int:
    """The number of possible CPUs, which is the number of values of a per-CPU map."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="utf-8")
    return int(text.strip().split(",")[-1].split("-")[-1]) + 1
