# SPDX-License-Identifier: Apache-2.0
"""The table of hints: made by the owner of an enclave, written by applications, read by agents and BPF."""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Self

from ..loaders.closing import Closing
from ..loaders.descriptors import TIMEOUT, take
from ..loaders.errors import GhostError
from ..loaders.link import create_map
from ..loaders.maps import Map
from ..loaders.object import MapDef
from ..loaders.uapi import BPF_F_MMAPABLE, map_type
from ..schedulers import pids
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

#: Where ``ghostbpf run`` tells its command the path of the enclave's table.
ENVIRONMENT = "GHOSTBPF_HINTS"
ITEMS, CLASSES = 4096, 64

_MOST_ITEMS = 1 << 20


class Hints(Closing):
    """A table of scheduling items and work classes, mapped into this process.

    An item, or a work class, is written by one process, its owner; which is whose is the applications' to agree on.
    Its owner and its task are known by their numbers in the initial pid namespace, where alone a table can be written.
    """

    def __init__(self, source: Map) -> None:
        self.map, definition = source, source.definition
        # Only arrays have values and this flag.
        if definition.value_size != RECORD or not definition.flags & BPF_F_MMAPABLE:
            raise _no_table(definition.name)
        self._mapped = mmap.mmap(source.fd, RECORD * definition.max_entries)
        self._memory = memoryview(self._mapped)
        self.header = header = Header._make(HEADER.unpack_from(self._memory))
        if header.version != VERSION or header.records != definition.max_entries:
            raise _no_table(definition.name)
        self._classes = Records("work class", self._memory, header.first_class, header.classes, CLASS)
        self._items = Records("scheduling item", self._memory, header.first_item, header.items, ITEM)
        self._stream = Stream(self._memory[: header.first_class * RECORD])
        self._reader = Reader(self._stream, self._items.seqs)
        self._reported: set[int] = set()
        self._lock = threading.Lock()
        self._writable = pids.is_initial()

    @classmethod
    def create(cls, path: str | Path, *, items: int = ITEMS, classes: int = CLASSES) -> Self:
        """Make a table and pin it at ``path``, for nobody but this user. Raises BpfError, and ValueError for sizes."""
        if not 0 < items <= _MOST_ITEMS or not 0 < classes <= _MOST_ITEMS:
            raise ValueError(f"{items} items and {classes} classes: 1 to {_MOST_ITEMS} of each")
        # A reader looks at each slot, and at each item of a slot: about as many of either.
        slots = SLOTS_PER_RECORD * max(math.isqrt(items) // 4, 1)
        header = Header(VERSION, slots, classes, items, 0, 0, 0)
        made = create_map(MapDef("hints", map_type("ARRAY"), 4, RECORD, header.records, BPF_F_MMAPABLE, 0, 0, 0))
        with mmap.mmap(made.fd, RECORD * header.records) as memory:
            HEADER.pack_into(memory, 0, *header)
        made.pin(path)
        return cls(made)

    @classmethod
    def open(cls, path: str | Path | None = None) -> Self:
        """The table pinned at ``path``, by default where ``ghostbpf run`` says; BpfError where there is none."""
        if path is None and (path := os.environ.get(ENVIRONMENT)) is None:
            raise GhostError(f"there is no {ENVIRONMENT} in the environment", hint="name the table's path")
        return cls(Map.open(path))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The table behind ``fd``, inherited or passed by who may open it; ``fd`` is the table's from now on."""
        return cls(Map(fd))

    @classmethod
    def receive(cls, offer: str, timeout: float = TIMEOUT) -> Self:
        """The table that is offered to this process, by ``ghostbpf hints admit ID --pid``; raises DescriptorError."""
        return cls(Map(take(offer, timeout)))

    def fileno(self) -> int:
        """The descriptor, to be passed to who may write the table and cannot open it."""
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
        """Say all of item ``index``; ``tid`` 0 frees it.

        Raises NotOwner where it is in use and another living process writes it; that has to agree before this one
        may ``take`` it.
        """
        self._need_writable()
        if not 0 <= work_class < len(self._classes):
            raise ValueError(f"there is no work class {work_class}, only 0 to {len(self._classes) - 1}")
        with self._lock:
            if not take:
                self._items.check_owner(index)
            before = self.item(index)
            self._store(index, tid, work_class, int(runnable), deadline_ns)
            if before is None or before.tid != tid:
                self._stream.announce_member(index, self._items.seqs[index])

    def set_runnable(self, index: int, runnable: bool, *, deadline_ns: int | None = None) -> None:
        """Say whether the task of item ``index``, one of this process's, has work to do, and by when."""
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
            pids.need_initial("give hints")

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
        """Say all of work class ``index``, which is either ``one_shot`` or ``repeating``; of neither frees it.

        Raises NotOwner like set_item().
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
        """A consistent copy of item ``index``; None while it is being written, for ever where its owner died so."""
        if (fields := self._items.read(index)) is None:
            return None
        return Item.checked(fields, len(self._classes))

    def work_class(self, index: int) -> WorkClass:
        """A consistent copy of work class ``index``; that of one not in use where there is none to be had."""
        return WorkClass.checked(self._classes.read(index) or (0, 0, 0, 0, 0))

    def updates(self) -> list[tuple[int, Item]]:
        """The items that were updated since the last call, each once, in the order of their last updates.

        At first, and after a change of a work class, all items in use. One that was freed comes once more, with tid 0.
        """
        changed = self._reader.changed()
        if not changed:
            return []
        found = [(index, item) for index in changed if (item := self.item(index)) is not None]
        found = [(index, item) for index, item in found if item.tid or index in self._reported]
        for index, item in found:
            (self._reported.add if item.tid else self._reported.discard)(index)
        return sorted(found, key=lambda update: update[1].updated_ns)

    def close(self) -> None:
        """Unmap it, and drop the descriptor; what is in the table stays."""
        for held in (self._reader, self._stream, self._items, self._classes, self._memory):
            held.release()
        self._mapped.close()
        self.map.close()

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._items)


def _no_table(name: str) -> GhostError:
    return GhostError(
        f"map {name} is no table of hints, or another version's",
        hint="have the enclave and its applications use the same ghostbpf",
    )
