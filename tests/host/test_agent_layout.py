# SPDX-License-Identifier: Apache-2.0
"""Members of abi.h's structs in shared memory: a memoryview and cffi find the same integers."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.agents.layout import column, packer
from ghostbpf.schedulers.core import ffi

RECORDS = 3
MEMBERS = [
    (struct, member)
    for struct in ("channel", "cpu", "enclave", "status_word", "txn")
    for member, field in ffi().typeof(f"struct {struct}").fields
    if field.type.kind == "primitive"
]


@pytest.mark.parametrize(("struct", "member"), MEMBERS)
def test_column_reads_and_writes_the_member_of_each_record(struct: str, member: str) -> None:
    memory = bytearray(RECORDS * ffi().sizeof(f"struct {struct}"))
    records = ffi().from_buffer(f"struct {struct}[]", memory)
    values = column(memoryview(memory), struct, member)
    for number, record in enumerate(records):
        setattr(record, member, 1000 + number)
    assert values.tolist() == [1000, 1001, 1002]
    values[1] = 7
    assert [getattr(record, member) for record in records] == [1000, 7, 1002]
    for record in records:
        setattr(record, member, 0)
    assert not any(memory), "no other member was written"


def test_packer_has_the_members_in_their_order() -> None:
    txn = ffi().new("struct txn *", {"gtid": 1 << 40, "slice_ns": 5, "seq": 6, "cpu": -1, "flags": 7, "state": 8})
    assert packer("txn").unpack(ffi().buffer(txn)) == (1 << 40, 5, 6, -1, 7, 8)
