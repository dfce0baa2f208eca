# SPDX-License-Identifier: Apache-2.0
"""The update stream under any interleaving: at each fence of an actor, others may run. Needs no kernel."""

from __future__ import annotations

import itertools

import pytest
from ghostbpf.hints import records, stream
from ghostbpf.hints.layout import ITEM, RECORD, SLOTS_PER_RECORD
from hypothesis import given, settings
from hypothesis import strategies as st

ITEMS = 20
READER, RESCAN = ITEMS + 1, ITEMS + 2
#: Two items share a slot.
ACTORS = st.sampled_from([READER, 1, 1 + SLOTS_PER_RECORD, 2, RESCAN])
_FIRST_ITEM = 2


class Interleaved:
    """Owners and a reader in one thread: ``between`` maps the number of a fence to the actors that run there.

    Actor 1 + n is the owner of item n; RESCAN requests a rescan.
    """

    def __init__(self, between: dict[int, list[int]]) -> None:
        memory = memoryview(bytearray((_FIRST_ITEM + ITEMS) * RECORD))
        self.records = records.Records("item", memory, _FIRST_ITEM, ITEMS, ITEM)
        self.stream = stream.Stream(memory[: _FIRST_ITEM * RECORD])
        self.reader = stream.Reader(self.stream, self.records.seqs)
        self.written: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self._between, self._fences = between, itertools.count()
        self._busy: set[int] = set()
        self._count = 0

    def fence(self) -> None:
        """Run the actors of this fence."""
        for choice in self._between.get(next(self._fences), ()):
            self.act(choice)

    def act(self, choice: int) -> None:
        """Run actor ``choice``, unless it is inside an earlier action."""
        if choice in self._busy:
            return
        self._busy.add(choice)
        if choice == READER:
            self._read()
        elif choice == RESCAN:
            self._count += 1
            self.stream.announce_all(self._count)
        else:
            self._update(choice - 1)
        self._busy.discard(choice)

    def _update(self, index: int) -> None:
        self._count += 1
        value = self._count
        seq = self.records.write(index, value, 0, 0, value << 40, value)
        self.stream.announce(index, seq)
        self.written[index] = value

    def _read(self) -> None:
        for index in self.reader.changed():
            if (fields := self.records.read(index)) is not None:
                _, tid, _, _, deadline_ns, updated_ns = fields
                assert (deadline_ns, updated_ns) == (tid << 40, tid), "the record is torn"
                assert tid >= self.seen.get(index, 0), "the record is older than one read before"
                self.seen[index] = tid


@settings(deadline=None, max_examples=2000)
@given(
    st.lists(ACTORS, min_size=1, max_size=4),
    st.dictionaries(st.integers(0, 25), st.lists(ACTORS, min_size=1, max_size=3), max_size=4),
)
def test_last_update_of_each_item_is_seen(script: list[int], between: dict[int, list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        table = Interleaved(between)
        patch.setattr(records, "fence", table.fence)
        patch.setattr(stream, "fence", table.fence)
        for choice in script:
            table.act(choice)
    table.act(READER)
    assert table.seen == table.written
    assert table.reader.changed() == []


@given(st.lists(st.integers(0, ITEMS - 1), min_size=1))
def test_one_look_gives_each_updated_item_once(indexes: list[int]) -> None:
    table = Interleaved({})
    table.act(READER)
    for index in indexes:
        table.act(1 + index)
    assert sorted(table.reader.changed()) == sorted(set(indexes))
    assert table.reader.changed() == []
