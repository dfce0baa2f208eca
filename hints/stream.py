# SPDX-License-Identifier: Apache-2.0
"""The update stream of a table: writer and reader of the protocol in bpf/hints.h."""

from __future__ import annotations

from ..loaders.membarrier import fence
from .layout import LAST, MEMBERS, RECORD, RESCAN


class Stream:
    """Header and slots of a table, at the start of its ``memory``."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.header, self.slots = memory[:RECORD].cast("Q"), memory[RECORD:].cast("Q")

    def announce(self, index: int, seq: int) -> None:
        """Announce an update of item ``index``, now at ``seq``."""
        entry = seq << 32 | index
        self.slots[index % len(self.slots)] = entry
        fence()
        self.header[LAST] = entry

    def announce_member(self, index: int, seq: int) -> None:
        """Announce to BPF that item ``index``, now at ``seq``, has another task."""
        self.header[MEMBERS] = seq << 32 | index

    def announce_all(self, entry: int) -> None:
        """Have readers scan all items; ``entry`` must differ from each earlier one."""
        self.header[RESCAN] = entry

    def release(self) -> None:
        """Release the memory views."""
        for view in (self.header, self.slots, self._memory):
            view.release()


class Reader:
    """A reader of ``stream``; ``seqs`` are the items'. Each of several readers sees all updates."""

    def __init__(self, stream: Stream, seqs: memoryview) -> None:
        self._stream, self._seqs, self._header = stream, seqs, stream.header
        self._last = 0
        self._rescan: int | None = None
        self._slots = stream.slots.tolist()
        self._seen = [seqs[slot :: len(self._slots)].tolist() for slot in range(len(self._slots))]

    def is_behind(self) -> bool:
        """Whether an item may have been updated since the last call of changed()."""
        return bool(self._header[LAST] != self._last or self._header[RESCAN] != self._rescan)

    def changed(self) -> list[int]:
        """The items updated since the last call; all that were ever written in the first call and after announce_all().

        An item that is being written is left for a later call, after the update is announced.
        """
        if not self.is_behind():
            return []
        last, rescan = self._header[LAST], self._header[RESCAN]
        everything = rescan != self._rescan
        self._last, self._rescan = last, rescan
        fence()
        before, self._slots = self._slots, self._stream.slots.tolist()
        fence()
        items: list[int] = []
        for slot, (old, new) in enumerate(zip(before, self._slots, strict=True)):
            if everything or old != new:
                items += self._rescan_slot(slot, everything)
        return items

    def _rescan_slot(self, slot: int, everything: bool) -> list[int]:
        count, seen = len(self._slots), self._seen[slot]
        now = self._seqs[slot::count].tolist()
        items = []
        for place, seq in enumerate(now):
            if seq & 1:
                now[place] = seen[place]
            elif seq and (everything or seq != seen[place]):
                items.append(place * count + slot)
        self._seen[slot] = now
        return items

    def release(self) -> None:
        """Release the memory views."""
        self._seqs.release()
