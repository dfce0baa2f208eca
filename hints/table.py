# SPDX-License-Identifier: Apache-2.0
"""The table of hints: created by an enclave's owner, written by applications, read by agents and BPF."""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Self

from ..loaders import pid_namespace
from ..loaders.closing import Closing
from ..loaders.descriptors import TIMEOUT, take
from ..loaders.errors import GhostError
from ..loaders.link import create_map
from ..loaders.maps import Map
from ..loaders.object import MapDef
from ..loaders.uapi import BPF_F_MMAPABLE, map_type
from .layout import (
    CLASS,
    CLASS_ENTRY,
    HEADER,
    ITEM,
    RECORD,
    SLOTS_PER_RECORD,
    VERSION,
    ClassFlags,
    Header,
    Item,
    WorkClass,
)
from .records import Records
from .stream import Reader, Stream

#: The environment variable in which ``ghostbpf run`` passes the path of the enclave's table to its command.
ENVIRONMENT = "GHOSTBPF_HINTS"
ITEMS, CLASSES = 4096, 64

_MAX_ITEMS = 1 << 20


class Hints(Closing):
    """A table of scheduling items and work classes, mapped into this process.

    An item or a work class is written by one process, its owner; applications agree among themselves on the owners.
    Owners and tasks are identified by their pids in the initial pid namespace; only processes in it can write.
    """

    def __init__(self, source: Map, header: Header | None = None) -> None:
        self.map, definition = source, source.definition
        # Of the map types that take this flag, only an array has values: no need to load the kernel's types here.
        if definition.value_size != RECORD or not definition.flags & BPF_F_MMAPABLE:
            raise _not_a_table(definition.name)
        self._mapped = mmap.mmap(source.fd, RECORD * definition.max_entries)
        self._memory = memoryview(self._mapped)
        self.header = header = header or Header._make(HEADER.unpack_from(self._memory))
        if not header.describes(definition.max_entries):
            raise _not_a_table(definition.name)
        self._classes = Records("work class", self._memory, header.first_class, header.classes, CLASS)
        self._items = Records("scheduling item", self._memory, header.first_item, header.items, ITEM)
        self._stream = Stream(self._memory[: header.first_class * RECORD])
        self._reader = Reader(self._stream, self._items.seqs)
        self._reported: set[int] = set()
        self._lock = threading.Lock()
        self._writable = pid_namespace.is_initial()

    @classmethod
    def create(cls, path: str | Path, *, items: int = ITEMS, classes: int = CLASSES) -> Self:
        """Create a table and pin it at ``path``, open to this user only. Raises BpfError, and ValueError for sizes."""
        if not 0 < items <= _MAX_ITEMS or not 0 < classes <= _MAX_ITEMS:
            raise ValueError(f"{items} items and {classes} classes: 1 to {_MAX_ITEMS} of each")
        header = _first_header(items, classes)
        table = create_map(MapDef("hints", map_type("ARRAY"), 4, RECORD, header.records, BPF_F_MMAPABLE, 0, 0, 0))
        with mmap.mmap(table.fd, RECORD * header.records) as memory:
            HEADER.pack_into(memory, 0, *header)
        table.pin(path)
        return cls(table)

    @classmethod
    def open(cls, path: str | Path | None = None) -> Self:
        """The table pinned at ``path``; the default is the path that ``ghostbpf run`` passes. Raises BpfError."""
        if path is None and (path := os.environ.get(ENVIRONMENT)) is None:
            raise GhostError(f"{ENVIRONMENT} is not in the environment", hint="pass the table's path")
        return cls(Map.open(path))

    @classmethod
    def of_enclave(cls, path: str | Path) -> Self:
        """The table of an enclave, which create() made in its default size, whatever its header says by now.

        An application can overwrite the header, and must not keep the next agent from its table.
        """
        return cls(Map.open(path), _first_header(ITEMS, CLASSES))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The table behind ``fd``, an inherited or received descriptor, which it owns from now on."""
        return cls(Map(fd))

    @classmethod
    def receive(cls, offer: str, timeout: float = TIMEOUT) -> Self:
        """The table that ``ghostbpf hints admit ID --pid`` offers to this process; raises DescriptorError."""
        return cls(Map(take(offer, timeout)))

    def fileno(self) -> int:
        """The descriptor, to be passed to a process that may write the table and cannot open it."""
        return self.map.fd

    def set_item(
        self,
        index: int,
        *,
        tid: int,
        work_class: int = 0,
        runnable: bool = True,
        deadline_ns: int = 0,
        take: bool = False,
    ) -> None:
        """Set all of item ``index``; ``tid`` 0 frees it.

        Raises NotOwner if it belongs to another living process. ``take`` skips that check: the owner must have agreed.
        """
        self._need_writable()
        if not 0 <= work_class < len(self._classes):
            raise ValueError(f"no work class {work_class}: the table has 0 to {len(self._classes) - 1}")
        with self._lock:
            if not take:
                self._items.check_owner(index)
            before = self.item(index)
            self._store(index, tid, work_class, int(runnable), deadline_ns)
            if before is None or before.tid != tid:
                self._stream.announce_member(index, self._items.seqs[index])

    def set_runnable(self, index: int, runnable: bool, *, deadline_ns: int | None = None) -> None:
        """Set whether the task of item ``index``, which this process owns, has work, and its deadline."""
        self._need_writable()
        with self._lock:
            self._items.check_owner(index)
            before = self.item(index)
            if before is None or not before.tid:
                raise GhostError(f"scheduling item {index} is not in use", hint="set_item()")
            if deadline_ns is None:
                deadline_ns = before.deadline_ns
            self._store(index, before.tid, before.work_class, int(runnable), deadline_ns)

    def _need_writable(self) -> None:
        if not self._writable:
            pid_namespace.need_initial("give hints")

    def _store(self, index: int, tid: int, work_class: int, flags: int, deadline_ns: int) -> None:
        seq = self._items.write(index, tid, work_class, flags, deadline_ns, time.monotonic_ns())
        self._stream.announce(index, seq)

    def set_class(
        self,
        index: int,
        *,
        one_shot: bool = False,
        repeating: bool = False,
        qos: int = 0,
        exectime_ns: int = 0,
        period_ns: int = 0,
        take: bool = False,
    ) -> None:
        """Set all of work class ``index``, either ``one_shot`` or ``repeating``; neither of them frees it.

        Raises NotOwner as set_item() does.
        """
        self._need_writable()
        if one_shot and repeating:
            raise ValueError("a work class is one_shot or repeating, not both")
        if repeating and not period_ns:
            raise ValueError("a repeating work class needs a period_ns")
        flags = ClassFlags.ONE_SHOT * one_shot | ClassFlags.REPEATING * repeating
        with self._lock:
            if not take:
                self._classes.check_owner(index)
            seq = self._classes.write(index, flags, qos, exectime_ns, period_ns)
            self._stream.announce_all(seq << 32 | CLASS_ENTRY | index)

    def item(self, index: int) -> Item | None:
        """A consistent copy of item ``index``; None while it is being written (permanently if the owner died then)."""
        if (fields := self._items.read(index)) is None:
            return None
        return Item.checked(fields, len(self._classes))

    def work_class(self, index: int) -> WorkClass:
        """A consistent copy of work class ``index``; an unused class while it is being written."""
        return WorkClass.checked(self._classes.read(index) or (0, 0, 0, 0, 0))

    def updates(self) -> list[tuple[int, Item]]:
        """The items updated since the last call, each once, in the order of their last updates.

        The first call, and a call after a change of a work class, returns all items in use. A freed item is returned
        once more, with tid 0.
        """
        if not self._reader.is_behind():
            return []
        items = [(index, item) for index in self._reader.changed() if (item := self.item(index)) is not None]
        items = [(index, item) for index, item in items if item.tid or index in self._reported]
        for index, item in items:
            (self._reported.add if item.tid else self._reported.discard)(index)
        return sorted(items, key=lambda update: update[1].updated_ns)

    def close(self) -> None:
        """Unmap the table and close its descriptor; its contents stay."""
        for view in (self._reader, self._stream, self._items, self._classes, self._memory):
            view.release()
        self._mapped.close()
        self.map.close()

    def __len__(self) -> int:
        """The number of items."""
        return len(self._items)


def _first_header(items: int, classes: int) -> Header:
    # A reader scans all slots, and all items of a changed slot: make both about equal in number.
    slots = SLOTS_PER_RECORD * max(math.isqrt(items) // 4, 1)
    return Header(VERSION, slots, classes, items, 0, 0, 0)


def _not_a_table(name: str) -> GhostError:
    return GhostError(
        f"map {name} is not a table of hints, or has another version",
        hint="use the same version of ghostbpf for the enclave and its applications",
    )
