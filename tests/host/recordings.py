# SPDX-License-Identifier: Apache-2.0
"""Events for tests of recordings: of a known course, and arbitrary ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ghostbpf.tools.record.events import (
    PREEMPTED,
    TAKEN_OFF,
    WOKEN,
    YIELDED,
    Ejected,
    Enclave,
    Event,
    Lost,
    Message,
    Queued,
    Switch,
    Thread,
    Transaction,
    Wakeup,
)
from ghostbpf.tools.record.perfetto import Encoder, header
from hypothesis import strategies as st

MS = 1_000_000
U32, U64 = 1 << 32, 1 << 64
SLEEPS, ENDS = 1, 0x10

PENDING = 0x10001
MAKE, CC, LD, AGENT = 101, 102, 103, 104
NAMES = {0: "swapper", MAKE: "make", CC: "cc1", LD: "ld", AGENT: "agent"}
COMPLETE, STALE, PREEMPT = 1, 2, 1


def switch(ms: float, cpu: int, left: int, came: int, state: int = SLEEPS, prio: int = 120) -> Switch:
    return Switch(int(ms * MS), cpu, left, NAMES[left], 120, state, came, NAMES[came], prio)


def queued(ms: float, tid: int, why: str, other: int, cpu: int, **more: int) -> Queued:
    known = {"allowed": -1, "ext": 0, "enclave": 0, "queue": 0, "depth": 0, **more}
    ext = bool(known["ext"])
    return Queued(
        int(ms * MS), tid, why, cpu, other, known["allowed"], ext, known["enclave"], known["queue"], known["depth"]
    )


def woken(ms: float, tid: int, waker: int, target: int, **more: int) -> list[Event]:
    wakeup = Wakeup(int(ms * MS), 0, waker, tid, NAMES[tid], 120, target)
    return [wakeup, queued(ms, tid, WOKEN, waker, target, **more)]


#: CPUs 0 and 1, for 100 ms. From 10 ms on, cc1 waits for 20 ms, while make and ld run, and CPU 1 idles from 25 ms on;
#: from 40 ms on it waits for an agent for 10 ms; at 60 ms it loses its CPU to ld for 5 ms, as the agent asked for.
KNOWN: list[Event] = [
    *(Thread(0, tid, MAKE if tid == CC else tid, name) for tid, name in NAMES.items() if tid),
    Enclave(0, 1, "biff", 0b11),
    switch(1, 0, 0, MAKE),
    switch(1, 1, 0, LD),
    *woken(10, CC, MAKE, 0, ext=1, enclave=1, queue=PENDING, depth=1),
    switch(25, 1, LD, 0),
    switch(30, 0, MAKE, CC),
    switch(38, 0, CC, 0),
    Enclave(39 * MS, 1, "fifo_centralized", 0b11),
    *woken(40, CC, 0, 0, ext=1, enclave=1, queue=PENDING, depth=1),
    Message(40 * MS, 2, CC, 7, 0, 1),
    Transaction(45 * MS, AGENT, CC, 6, 1, STALE, 0, 0),
    Transaction(46 * MS, AGENT, CC, 7, 1, COMPLETE, 0, 2 * MS),
    switch(50, 1, 0, CC),
    *woken(55, LD, CC, 1, ext=1, enclave=1, queue=PENDING, depth=2),
    Transaction(60 * MS - 1000, AGENT, LD, 1, 1, COMPLETE, PREEMPT, 0),
    switch(60, 1, CC, LD, PREEMPTED),
    queued(60, CC, TAKEN_OFF, LD, 1, ext=1, enclave=1, queue=PENDING, depth=1),
    switch(65, 1, LD, CC),
    switch(100, 1, CC, 0, ENDS),
]


def write(path: Path, events: Iterable[Event], cpus: int = 2) -> Path:
    path.write_bytes(header(cpus) + b"".join(Encoder().encode(events)))
    return path


_TIMES = st.integers(0, U64 // 4)
_TIDS = st.integers(0, 9) | st.integers(0, (1 << 22) - 1)
_CPUS = st.integers(0, 3) | st.integers(0, 1023)
_S32 = st.integers(-(1 << 31), (1 << 31) - 1)
_U32 = st.integers(0, U32 - 1)
_U64 = st.integers(0, U64 - 1)
_NAMES = st.text(max_size=15).filter(lambda name: "\0" not in name and name.isprintable())
_STATES = st.sampled_from([0, 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x100])
_ALLOWED = st.just(-1) | st.integers(0, (1 << 70) - 1)
_WHY = st.sampled_from([WOKEN, TAKEN_OFF, YIELDED])

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Thread, _TIMES, _TIDS, _TIDS, _NAMES),
    st.builds(Switch, _TIMES, _CPUS, _TIDS, _NAMES, _S32, _STATES, _TIDS, _NAMES, _S32),
    st.builds(Wakeup, _TIMES, _CPUS, _TIDS, _TIDS, _NAMES, _S32, _CPUS),
    st.builds(Queued, _TIMES, _TIDS, _WHY, _CPUS, _TIDS, _ALLOWED, st.booleans(), st.integers(0, 63), _U64, _U32),
    st.builds(Message, _TIMES, st.integers(1, 14), _U64, _U32, _CPUS, st.integers(1, 63)),
    st.builds(Transaction, _TIMES, _TIDS, _U64, _U32, _S32, st.integers(0, 9), _U32, _U64),
    st.builds(Enclave, _TIMES, st.integers(1, 63), _NAMES, st.integers(0, (1 << 70) - 1)),
    st.builds(Lost, _TIMES, _U32),
    st.builds(Ejected, _TIMES, _NAMES),
)
