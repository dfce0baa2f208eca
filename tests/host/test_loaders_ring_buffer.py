# SPDX-License-Identifier: Apache-2.0
"""A ring buffer, from the program that fills it to the function that receives the records."""

from __future__ import annotations

import contextlib
import select
import struct
from collections.abc import Callable, Iterator

import pytest
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import RingBuffer
from ghostbpf.loaders.object import Object
from ghostbpf.loaders.ring import Ring, RingTail

BURST = 16


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    return build(
        f"#define BURST {BURST}\n"
        + """
        BPF_RINGBUF_OUTPUT(events, 1);

        int emit(u64 *ctx)
        {
            for (u32 i = 0; i < BURST; i++) {
                struct { u64 batch, number; } record = {ctx[0], i};
                if (events.ringbuf_output(&record, sizeof(record), 0))
                    return i;
            }
            return BURST;
        }
        """
    )


@pytest.fixture
def module(compiled: Object) -> Iterator[Module]:
    with contextlib.closing(Module(compiled)) as made:
        yield made


@pytest.fixture
def emit(module: Module) -> Iterator[Callable[[int], int]]:
    """``emit(batch)`` puts up to BURST records of that batch into the ring; returns the number that fitted."""
    with module.load("emit", Target.syscall()) as program:
        yield lambda batch: program.run(struct.pack("Q", batch))[0]


def test_ring_buffer_delivers_every_record_in_order(module: Module, emit: Callable[[int], int]) -> None:
    got: list[tuple[int, ...]] = []
    ring = RingBuffer(module.maps["events"], lambda data: got.append(struct.unpack("2Q", data)))
    assert ring.consume() == 0
    for batch in range(3):
        assert emit(batch) == BURST
    assert ring.poll(1000) == 3 * BURST
    assert got == [(batch, i) for batch in range(3) for i in range(BURST)]
    emit(3)
    assert ring.consume() == BURST
    assert got[-1] == (3, BURST - 1)


def test_full_ring_buffer_refuses_and_goes_on_when_read(module: Module, emit: Callable[[int], int]) -> None:
    got: list[bytes] = []
    ring = RingBuffer(module.maps["events"], got.append)
    sent = 0
    while (sent_now := emit(0)) == BURST:
        sent += BURST
    # A page of records of 16 bytes, each with a header of eight bytes.
    assert sent + sent_now == 4096 // 24
    assert ring.consume() == 4096 // 24 == len(got)
    assert emit(0) == BURST


def test_ring_buffer_waits_no_longer_than_told_and_wakes_select(module: Module, emit: Callable[[int], int]) -> None:
    ring = RingBuffer(module.maps["events"], lambda data: None)
    assert ring.poll(0) == 0
    assert select.select([ring], [], [], 0) == ([], [], [])
    emit(0)
    assert select.select([ring], [], [], 5)[0] == [ring]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exception_in_the_receiver_reaches_the_caller(module: Module, emit: Callable[[int], int]) -> None:
    def receive(data: bytes) -> None:
        raise LookupError(data)

    ring = RingBuffer(module.maps["events"], receive)
    emit(0)
    with pytest.raises(LookupError):
        ring.consume()


def test_records_are_taken_as_bytes_with_their_headers(module: Module, emit: Callable[[int], int]) -> None:
    ring = Ring(module.maps["events"], "QQ")
    assert ring.read_bytes() == b""
    for batch in range(40):
        assert emit(batch) == BURST
        records = list(struct.iter_unpack("=8x2Q", ring.read_bytes()))
        assert records == [(batch, i) for i in range(BURST)]


def test_tail_sees_each_record_and_leaves_them_to_the_reader(module: Module, emit: Callable[[int], int]) -> None:
    ring = Ring(module.maps["events"], "QQ")
    emit(0)
    old, new = (RingTail(module.maps["events"], "QQ", from_start=start) for start in (True, False))
    emit(1)
    assert [record[1:] for record in new.read()[0]] == [(1, i) for i in range(BURST)]
    assert [record[1:] for record in old.read()[0]] == [(batch, i) for batch in range(2) for i in range(BURST)]
    assert new.read() == ([], 0)
    assert len(ring.read()) == 2 * BURST


def test_tail_that_is_too_slow_counts_what_was_overwritten(module: Module, emit: Callable[[int], int]) -> None:
    ring, tail = Ring(module.maps["events"], "QQ"), RingTail(module.maps["events"], "QQ", from_start=True)
    for batch in range(20):
        assert emit(batch) == BURST
        ring.read()
    records, lost = tail.read()
    # A page holds 170 records of 24 bytes, and a part of one more.
    assert len(records) == 170
    assert lost == 20 * BURST - 170
    assert records[-1][1:] == (19, BURST - 1)
