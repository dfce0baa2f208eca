# SPDX-License-Identifier: Apache-2.0
"""The update stream of a table, from both ends; bpf/hints.h has its protocol."""

from __future__ import annotations

from ..loaders.membarrier import fence
from .layout import LAST, MEMBERS, RECORD, RESCAN


class Stream:
    """Header and slots of a table, the beginning of its ``memory``."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.header, self.slots = memory[:RECORD].cast("Q"), memory[RECORD:].cast("Q")

    def announce(self, index: int, seq: int) -> None:
        """Tell that item ``index`` has been updated, and is at ``seq`` now."""
        entry = seq << 32 | index
        self.slots[index % len(self.slots)] = entry
        fence()
        self.header[LAST] = entry

    def announce_member(self, index: int, seq: int) -> None:
        """Tell BPF that item ``index``, at ``seq`` now, has another task."""
        self.header[MEMBERS] = seq << 32 | index

    def announce_all(self, entry: int) -> None:
        """Tell, by an ``entry`` that has never been there, that all items are to be looked at."""
        self.header[RESCAN] = entry

    def release(self) -> None:
        """Let go of the memory."""
        for view in (self.header, self.slots, self._memory):
            view.release()


class Reader:
    """One who reads ``stream``; ``seqs`` are those of the items. There may be others, who see all of it, too."""

    def __init__(self, stream: Stream, seqs: memoryview) -> None:
        self._stream, self._seqs = stream, seqs
        self._last = 0
        self._rescan: int | None = None
        self._slots = stream.slots.tolist()
        self._seen = [seqs[slot :: len(self._slots)].tolist() for slot in range(len(self._slots))]

    def changed(self) -> list[int]:
        """The items that were updated since the last call; at first, and when told to look at all, all ever written.

        One that is being written just now is left for later: that update is yet to be announced.
        """
        last, rescan = self._stream.header[LAST], self._stream.header[RESCAN]
        if last == self._last and rescan == self._rescan:
            return []
        everything = rescan != self._rescan
        self._last, self._rescan = last, rescan
        fence()
        before, self._slots = self._slots, self._stream.slots.tolist()
        fence()
        found: list[int] = []
        for slot, (old, new) in enumerate(zip(before, self._slots, strict=True)):
            if everything or old != new:
                found += self._rescan_slot(slot, everything)
        return found

    def _rescan_slot(self, slot: int, everything: bool) -> list[int]:
        count, seen = len(self._slots), self._seen[slot]
        now = self._seqs[slot::count].tolist()
        found = []
        for place, seq in enumerate(now):
            if seq & 1:
                now[place] = seen[place]
            elif seq and (everything or seq != seen[place]):
                found.append(place * count + slot)
        self._seen[slot] = now
        return found

    def release(self) -> None:
        """Let go of the memory."""
        self._seqs.release()
