# SPDX-License-Identifier: Apache-2.0
"""The sizes in a table's header, which each of its members can rewrite."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import pytest
from ghostbpf.hints import Hints, layout
from ghostbpf.loaders.errors import GhostError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

ITEMS, CLASSES, SLOTS = 256, 8, 32
SIZES = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from((0, 1, 7, 8, 12, ITEMS, 2**32 - 8)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slots=SIZES, classes=SIZES, items=SIZES)
@example(slots=0, classes=CLASSES + SLOTS // 8, items=ITEMS)  # a stream without slots, of as many records as before
@example(slots=SLOTS + 7, classes=CLASSES, items=ITEMS)
@example(slots=SLOTS, classes=0, items=ITEMS + CLASSES)
@example(slots=SLOTS, classes=CLASSES + ITEMS, items=0)
@example(slots=SLOTS, classes=CLASSES + 1, items=ITEMS - 1)
@example(slots=2 * SLOTS, classes=CLASSES - SLOTS // 8, items=ITEMS)
def test_sizes_that_a_member_rewrote_end_no_other(bpffs: Path, slots: int, classes: int, items: int) -> None:
    path = bpffs / "hints"
    path.unlink(missing_ok=True)
    with (
        Hints.create(path, items=ITEMS, classes=CLASSES) as other,
        mmap.mmap(other.fileno(), layout.RECORD) as header,
    ):
        layout.HEADER.pack_into(header, 0, layout.VERSION, slots, classes, items, 0, 0, 0)
        other.set_class(CLASSES - 1, one_shot=True)
        other.set_item(ITEMS - 1, tid=7)
        assert [index for index, _ in other.updates()] == [ITEMS - 1]
        with contextlib.suppress(GhostError), Hints.open(path) as later:
            later.set_item(0, tid=5, take=True)
            assert 0 in {index for index, _ in later.updates()}


def test_table_of_an_enclave_opens_whatever_an_application_wrote_into_its_header(bpffs: Path) -> None:
    with Hints.create(bpffs / "enclave") as table:
        with mmap.mmap(table.fileno(), layout.RECORD * table.header.records) as memory:
            memory[: layout.RECORD] = b"\xff" * layout.RECORD
        with pytest.raises(GhostError, match="map hints is not a table of hints"):
            Hints.open(bpffs / "enclave")
        with Hints.of_enclave(bpffs / "enclave") as reader:
            assert reader.updates() == []
            table.set_item(7, tid=1)
            assert [index for index, _ in reader.updates()] == [7]
    Hints.create(bpffs / "small", items=ITEMS).close()
    with pytest.raises(GhostError, match="map hints is not a table of hints"):
        Hints.of_enclave(bpffs / "small")
