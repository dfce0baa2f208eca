# SPDX-License-Identifier: Apache-2.0
"""A recording's file: what is written is what is read, and a cut-off or foreign file is named."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from ghostbpf.tools.record import protobuf
from ghostbpf.tools.record.events import FORMAT, WOKEN, Lost, Message, Queued, Raw, Switch, Thread, Transaction, Wakeup
from ghostbpf.tools.record.perfetto import Encoder, header
from ghostbpf.tools.record.reader import BadRecording, read
from ghostbpf.tools.record.recording import CannotWrite, RecordingFile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import AGENT, CC, EVENTS, KNOWN, MAKE, MS, write
from trace_processor import ask

#: Of Perfetto's reader: how long it took, and how it looked up clocks. All else must be 0.
_HARMLESS = {"guess_trace_type_duration_ns", "parse_trace_duration_ns", "clock_sync_cache_miss"}
_STATS = "select name from stats where value != 0"


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trips(value: int) -> None:
    encoded = protobuf.varint(value)
    assert protobuf.read_varint(encoded, 0) == (value, len(encoded))


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_malformed(content: bytes) -> None:
    try:
        found = list(protobuf.fields(content))
    except protobuf.Malformed:
        return
    assert all(number > 0 for number, _ in found)


@settings(deadline=None, max_examples=50)
@given(st.lists(EVENTS, max_size=40))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, events: list) -> None:  # type: ignore[type-arg]
    path = write(tmp_path_factory.getbasetemp() / "round-trip", events)
    found = read(path)
    assert Counter(found.events) == Counter(events)
    assert not found.cut_off
    assert (found.cpus, found.release) == (2, os.uname().release)


def test_a_recording_cut_off_anywhere_has_the_events_before(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", KNOWN).read_bytes()
    start = len(header(2))
    path = tmp_path / "cut"
    for end in [*range(0, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:end])
        if end < start:
            with pytest.raises(BadRecording, match=str(path)):
                read(path)
            continue
        found = read(path)
        assert set(found.events) <= set(KNOWN)
        assert found.cut_off or whole[end : end + 1] == b"\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "no recording"),
        (os.urandom(3).join([b"\xff"] * 9), "no recording"),
        (b"\n\x02\x08\x01", "is not a recording of ghostbpf"),
        (header(2).replace(b"recording 1", b"recording 9"), "format 9"),
    ],
)
def test_foreign_file_is_named_with_the_remedy(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadRecording, match=what) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "ghostbpf" in (raised.value.hint or "")


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadRecording, match=f"cannot read {path}"):
            read(path)


@settings(max_examples=50)
@given(st.data())
def test_damaged_recording_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(header(2) + b"".join(Encoder().encode(KNOWN)))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole)
    with contextlib.suppress(BadRecording):
        read(path)


#: Made in a guest by `ghostbpf record` beside fifo_centralized, whose agent decides for two tasks that are woken.
LIVE = Path(__file__).parent / "traces" / "fifo_centralized.gz"


def test_perfetto_reads_all_of_a_known_recording_and_of_a_live_one(tmp_path: Path) -> None:
    known, live = write(tmp_path / "known", KNOWN), tmp_path / "live"
    live.write_bytes(gzip.decompress(LIVE.read_bytes()))
    of_known, of_live = ask(
        (
            known,
            [
                _STATS,
                "select state, sum(dur) as ns from thread_state join thread using (utid) where tid = 102 "
                "group by state",
                "select count(*) as n from sched",
                "select slice.name, thread.tid from slice join thread_track on slice.track_id = thread_track.id "
                "join thread using (utid) where category = 'transaction' order by ts",
                "select count(*) as n from flow",
                "select value, ts from counter join counter_track on counter.track_id = counter_track.id "
                "where counter_track.name like '%PENDING%' order by ts",
                "select tid, pid, thread.name from thread left join process using (upid) where tid = 102",
            ],
        ),
        (
            live,
            [
                _STATS,
                "select count(*) as n from sched",
                "select count(*) as n from slice where category = 'message'",
                "select count(*) as n from slice where category = 'transaction'",
                "select count(*) as n from counter",
                "select min(dur) as ns from thread_state where dur != -1",
            ],
        ),
    )
    stats, states, sched, decisions, flows, depths, names = of_known
    assert {row["name"] for row in stats} <= _HARMLESS
    ns = {row["state"]: row["ns"] for row in states}
    # The last state has no end. Running: 30 to 38, 50 to 60, 65 to 100 ms; runnable: 10 to 30, 40 to 50; 60 to 65.
    assert [ns[state] for state in ("Running", "R", "R+", "S")] == [53 * MS, 30 * MS, 5 * MS, 2 * MS]
    assert sched[0]["n"] == sum(isinstance(event, Switch) for event in KNOWN)
    assert [row["name"] for row in decisions] == [
        "cc1 to CPU 1: STALE",
        "cc1 to CPU 1: COMPLETE",
        "ld to CPU 1: COMPLETE",
    ]
    assert {row["tid"] for row in decisions} == {AGENT}
    # Two wakeups by a task; the message and the transaction that answers it.
    assert flows[0]["n"] == 3
    assert [row["value"] for row in depths] == [1, 1, 2, 1]
    assert names == [{"tid": CC, "pid": MAKE, "name": "cc1"}]

    stats, sched, messages, transactions, depths, shortest = of_live
    found = Counter(type(event) for event in read(live).events)
    assert {row["name"] for row in stats} <= _HARMLESS
    assert sched[0]["n"] == found[Switch]
    assert messages[0]["n"] == found[Message] > 0
    assert transactions[0]["n"] == found[Transaction] > 0
    assert depths[0]["n"] > 0
    assert shortest[0]["ns"] >= 0


_RECORD = struct.Struct(f"=I4x{FORMAT}")


def record(type: int, at: int = 5, **members: int) -> bytes:
    order = (
        "at allowed queue gtid slice_ns comm_low comm_high other_comm_low other_comm_high type cpu tid tgid other "
        "other_tgid depth enclave state flags prio other_prio nr_allowed target"
    ).split()
    given = {"at": at, "type": type, **members}
    return _RECORD.pack(_RECORD.size - 8, *(given.get(name, 0) for name in order))


def test_records_of_more_than_64_cpus_have_the_whole_affinity() -> None:
    records = record(4, tid=7, allowed=0b10, depth=1) + record(2, tid=7, allowed=1, nr_allowed=2, other=3)
    events = list(Raw(128).events(records))
    [one] = [event for event in events if isinstance(event, Queued)]
    assert (one.why, one.allowed) == (WOKEN, 1 | 1 << 65)
    [again] = [event for event in Raw(128).events(record(2, tid=7, nr_allowed=128)) if isinstance(event, Queued)]
    assert again.allowed == -1


def test_a_task_is_named_when_it_is_first_seen_and_when_its_name_changes() -> None:
    sh, ls = int.from_bytes(b"sh", "little"), int.from_bytes(b"ls", "little")
    records = b"".join(record(1, cpu=0, tid=0, other=7, other_tgid=7, other_comm_low=comm) for comm in (sh, sh, ls))
    named = [event for event in Raw(2).events(records) if isinstance(event, Thread)]
    assert [(one.tid, one.comm) for one in named] == [(7, "sh"), (7, "ls")]


def test_a_switch_that_the_kernel_hides_counts_as_lost() -> None:
    raw = Raw(2)
    events = list(raw.events(record(1, tid=0, other=7) + record(1, tid=8, other=0, cpu=0) + record(1, tid=9, cpu=1)))
    assert [event.events for event in events if isinstance(event, Lost)] == [1]
    assert raw.hidden == 1


def test_only_events_of_the_time_are_taken() -> None:
    records = b"".join(record(5, at=at, gtid=1) for at in (1, 2, 3))
    found = [event.at for event in Raw(2).events(records, 2, 3) if isinstance(event, Transaction)]
    assert found == [2]


def test_a_wakeup_is_an_event_of_ftrace_and_a_wait() -> None:
    kinds = [type(event) for event in Raw(2).events(record(2, tid=7, other=0))]
    assert kinds == [Thread, Wakeup, Queued]


def test_file_that_cannot_grow_keeps_whole_packets(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "trace"
    packets = [header(2), *Encoder().encode(KNOWN)]
    limit = len(header(2)) + 200
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with RecordingFile(path) as file, pytest.raises(CannotWrite, match=f"cannot write {path}: File too large"):
            file.write(packets)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(header(2)) <= path.stat().st_size <= limit
    found = read(path)
    assert not found.cut_off
    assert found.events
