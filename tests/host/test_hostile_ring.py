# SPDX-License-Identifier: Apache-2.0
"""An agent whose ring has bytes that the core would not write: its readers, in Python and in C, skip the same records.

The ring has the kernel's layout, in a file that the test writes; the rest is that of test_native_turns.py.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.loaders.object import MapDef, Object
from ghostbpf.loaders.ring import Ring
from ghostbpf.loaders.uapi import map_type
from ghostbpf.schedulers.agents import extension
from ghostbpf.schedulers.agents.task import MessageType, TxnState, message_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_native_turns import _MESSAGE, _SOURCE, TASKS, WORDS, BpfKernel, _picture

pytestmark = pytest.mark.usefixtures("root", "bcc")

SIZE = 4096
BUSY, DISCARDED = 1 << 31, 1 << 30


class RingFile:
    """A ring buffer in a file: the page of the consumer, that of the producer, and the data twice in a row."""

    def __init__(self, at: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.definition = MapDef("ring", map_type("RINGBUF"), 0, 0, SIZE, 0, 0, 0, 0)
        self.produced = at
        self.set_positions(at, at)

    def set_positions(self, consumed: int, produced: int) -> None:
        os.pwrite(self.fd, struct.pack("Q", consumed), 0)
        os.pwrite(self.fd, struct.pack("Q", produced), mmap.PAGESIZE)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("Q", os.pread(self.fd, 8, 0))[0])

    def fill(self, data: bytes) -> None:
        """Write ``data`` where the next record goes, and tell the reader of it."""
        for offset, byte in enumerate(data):
            for copy in (0, SIZE):
                place = 2 * mmap.PAGESIZE + copy + (self.produced + offset) % SIZE
                os.pwrite(self.fd, bytes([byte]), place)
        self.produced += len(data)
        os.pwrite(self.fd, struct.pack("Q", self.produced), mmap.PAGESIZE)

    def close(self) -> None:
        os.close(self.fd)


def record(content: bytes, bits: int = 0) -> bytes:
    return struct.pack("II", len(content) | bits, 0) + content + bytes(-len(content) % 8)


def message(gtid: int = 1, seq: int = 1, kind: int = MessageType.TASK_NEW, word: int = 3, cpu: int = 0) -> bytes:
    return _MESSAGE.pack(gtid, 0, 5, 15, seq, kind, 0, word, cpu, 40, 100)


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    if extension.native is None:
        pytest.skip(f"the native half is not used: {extension.missing}")
    return build(_SOURCE)


sane = st.builds(
    message,
    st.integers(0, TASKS),
    st.integers(0, 5),
    st.sampled_from(list(MessageType)),
    st.integers(0, WORDS - 1),
    st.integers(0, 1),
)
wild = st.builds(
    message,
    st.sampled_from([0, 1, 2, 1 << 63]),
    st.sampled_from([1, 2, (1 << 32) - 1]),
    st.integers(0, (1 << 16) - 1) | st.integers(0, 20),
    st.sampled_from([0, WORDS - 1, WORDS, (1 << 32) - 1]),
    st.sampled_from([0, -1, 64, 1 << 30, -(1 << 31)]),
)
records = st.one_of(
    st.builds(record, sane),
    st.builds(record, wild),
    st.builds(record, st.binary(max_size=100)),
    st.builds(record, sane, st.sampled_from([DISCARDED, BUSY])),
)


def turn(compiled: Object, is_native: bool, start: int, batches: list[list[bytes]]) -> list[Any]:
    """What can be seen after each turn of an agent that reads ``batches``."""
    seen = list[Any]()
    file = RingFile(start)
    with contextlib.closing(file), contextlib.closing(BpfKernel(compiled, is_native, ring=file)) as kernel:
        for key in range(32):
            kernel.answers[key] = TxnState.COMPLETE
        for batch in batches:
            file.fill(b"".join(batch))
            try:
                kernel.agent.turn()
            except GhostError as error:
                return [*seen, str(error)]
            policy: Any = kernel.agent.policy
            seen.append((file.consumed, kernel.counts, list(policy.calls)))
            seen.append([_picture(task) for _, task in sorted(kernel.agent.tasks.items())])
            policy.calls.clear()
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([0, SIZE - 72, (1 << 40) - 8]), st.lists(st.lists(records, max_size=5), min_size=1, max_size=4))
def test_both_readers_skip_the_same_records(compiled: Object, start: int, batches: list[list[bytes]]) -> None:
    python, native = (turn(compiled, is_native, start, batches) for is_native in (False, True))
    assert python == native


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 80).map(struct.Struct("Q").pack) | st.binary(min_size=8, max_size=8), max_size=40))
def test_both_readers_do_the_same_with_random_words(compiled: Object, words: list[bytes]) -> None:
    python, native = (turn(compiled, is_native, 0, [words, [record(message())]]) for is_native in (False, True))
    assert python == native


@pytest.fixture(params=[False, True], ids=["python", "native"])
def is_native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize(
    "bad",
    [
        record(b"12345"),
        record(message()[:-8]),
        record(message() * 2),
        record(message(kind=0)),
        record(message(kind=999)),
        record(message(kind=MessageType.CPU_IDLE)),
        record(message(gtid=0)),
        record(message(gtid=0, kind=MessageType.CPU_IDLE, cpu=-2)),
        record(message(word=WORDS)),
        record(message(cpu=1 << 20)),
    ],
    ids=["short", "cut", "long", "type 0", "type 999", "CPU's type", "no task", "CPU -2", "word", "CPU"],
)
def test_record_that_is_no_message_is_skipped_and_status_words_are_read(
    compiled: Object, is_native: bool, bad: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    good = [record(message(seq=seq, kind=MessageType.TASK_WAKEUP)) for seq in (1, 2)]
    with (
        contextlib.closing(RingFile()) as file,
        contextlib.closing(BpfKernel(compiled, is_native, ring=file)) as kernel,
    ):
        file.fill(good[0] + bad + bad + good[1])
        assert kernel.agent.turn()
        assert kernel.record.messages == 2
        assert kernel.agent.tasks[1].seq == 2
        assert file.consumed == file.produced
        assert kernel.record.overflowed == 1
        kernel.agent.turn()
        assert (kernel.record.overflowed, kernel.record.resyncs) == (0, 1)
    assert capfd.readouterr().err.count("in the ring of channel 1: skipped") == 1


def test_discarded_record_is_no_lost_message(compiled: Object, is_native: bool) -> None:
    with (
        contextlib.closing(RingFile()) as file,
        contextlib.closing(BpfKernel(compiled, is_native, ring=file)) as kernel,
    ):
        file.fill(record(message(), DISCARDED) + record(message()))
        kernel.agent.turn()
        assert (kernel.record.messages, kernel.record.overflowed) == (1, 0)


@pytest.mark.parametrize(("consumed", "produced"), [(64, 0), (0, SIZE + 8), (4, 64), (0, 60), (0, (1 << 64) - 8)])
def test_impossible_positions_end_the_agent(compiled: Object, is_native: bool, consumed: int, produced: int) -> None:
    with (
        contextlib.closing(RingFile()) as file,
        contextlib.closing(BpfKernel(compiled, is_native, ring=file)) as kernel,
    ):
        file.set_positions(consumed, produced)
        with pytest.raises(GhostError, match=f"ring is corrupt: consumed up to {consumed}, produced up to {produced}"):
            kernel.agent.turn()


def test_record_beyond_what_was_produced_ends_the_agent(compiled: Object, is_native: bool) -> None:
    with (
        contextlib.closing(RingFile()) as file,
        contextlib.closing(BpfKernel(compiled, is_native, ring=file)) as kernel,
    ):
        file.fill(record(message())[:-8])
        with pytest.raises(GhostError, match=f"ring is corrupt: a record of {_MESSAGE.size} bytes at 0"):
            kernel.agent.turn()


def test_bytes_and_records_are_read_past_records_of_another_length() -> None:
    content = record(message()) + record(b"123") + record(message(seq=2), DISCARDED) + record(message(seq=3))
    seqs = []
    for as_bytes in (False, True):
        with contextlib.closing(RingFile(SIZE - 24)) as file:
            ring = Ring(file, message_format())  # type: ignore[arg-type]
            file.fill(content)
            read = list(struct.iter_unpack(f"=I4x{message_format()}", ring.read_bytes())) if as_bytes else ring.read()
            seqs.append([fields[5] for fields in read])
            assert (file.consumed, ring.skipped, ring.skipped_length) == (file.produced, 1, 3)
    assert seqs == [[1, 3], [1, 3]]
