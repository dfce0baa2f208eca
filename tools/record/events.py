# SPDX-License-Identifier: Apache-2.0
"""What a recording consists of: events of the scheduler, with times in ns of CLOCK_BOOTTIME.

``Raw`` turns the kernel's records (struct record of bpf/tracers/record.h) into events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from ...loaders import abi
from ...schedulers.core import constant
from ..trace.tracer import ffi

#: Of a task that leaves its CPU, as the kernel's tracepoint prints it: R, R+, S, D, T, t, X, Z, P, I.
RUNNABLE, PREEMPTED = 0, 0x100
_STATES = {0: "R", 1: "S", 2: "D", 4: "T", 8: "t", 0x10: "X", 0x20: "Z", 0x40: "P", 0x80: "I", 0x100: "R+"}

#: Why a task began to wait.
WOKEN, MADE, TAKEN_OFF, YIELDED = "woken", "made", "preempted", "yielded"

#: Priorities below are real-time, and those below the next are deadlines.
_REAL_TIME, _DEADLINE = 100, 0


class Thread(NamedTuple):
    """A task is seen for the first time, or under another name."""

    at: int
    tid: int
    tgid: int
    comm: str


class Switch(NamedTuple):
    """A CPU goes from one task to another; task 0 is the idle task of each CPU."""

    at: int
    cpu: int
    left: int
    left_comm: str
    left_prio: int
    state: int
    came: int
    came_comm: str
    came_prio: int


class Wakeup(NamedTuple):
    """A task wakes another, which is to run on CPU ``target``; an interrupt's wakeups are the interrupted task's."""

    at: int
    cpu: int
    waker: int
    tid: int
    comm: str
    prio: int
    target: int


class Queued(NamedTuple):
    """A task begins to wait for a CPU.

    ``allowed`` has bit n for CPU n; -1: all CPUs. ``queue`` is the DSQ with its ``depth``, of a task in the ext class;
    0: on none. ``other`` is the task that woke it, or that came on its CPU.
    """

    at: int
    tid: int
    why: str
    cpu: int
    other: int
    allowed: int
    ext: bool
    enclave: int
    queue: int
    depth: int


class Message(NamedTuple):
    """The core tells an agent about a task, or, with gtid 0, about a CPU."""

    at: int
    kind: int
    gtid: int
    seq: int
    cpu: int
    enclave: int


class Transaction(NamedTuple):
    """An agent's decision, and what came of it (enum txn_state); its reason is the message number ``seq``."""

    at: int
    agent: int
    gtid: int
    seq: int
    cpu: int
    state: int
    flags: int
    slice_ns: int

    @property
    def tid(self) -> int:
        """The task."""
        return self.gtid & 0xFFFFFFFF


class Enclave(NamedTuple):
    """The policy and the CPUs (bit n for CPU n) of an enclave from now on; no policy: it is destroyed."""

    at: int
    id: int
    policy: str
    cpus: int


class Lost(NamedTuple):
    """That many events before are missing."""

    at: int
    events: int


class Ejected(NamedTuple):
    """The kernel ended the core."""

    at: int
    reason: str


Event: TypeAlias = Thread | Switch | Wakeup | Queued | Message | Transaction | Enclave | Lost | Ejected


def state_name(state: int) -> str:
    """The letter of a state, as ps has it; R+ is preempted."""
    return _STATES.get(state, "?")


def is_real_time(prio: int) -> bool:
    """Whether the task is of a class above the fair class and ext."""
    return prio < _REAL_TIME


_TYPES = ffi("record.h")
_CONSTANTS = _TYPES.dlopen(None)
#: A record of the ring buffer, without its header; and with it.
FORMAT = abi.struct_format(_TYPES, "struct record")
_RECORD = struct.Struct(f"=8x{FORMAT}")
_COMM = struct.Struct("=QQ")
_WORD_BITS = 64


def record_constant(name: str) -> int:
    """A #define or enumerator of bpf/tracers/record.h."""
    return int(getattr(_CONSTANTS, name))


_SWITCH, _WAKEUP, _NEW, _AFFINITY, _TXN = (
    record_constant(f"RECORD_{name}") for name in ("SWITCH", "WAKEUP", "NEW", "AFFINITY", "TXN")
)
_EXT = record_constant("RECORD_EXT")
_WAITS = record_constant("RECORD_WAITS")
_MESSAGES = {
    constant(f"MSG_{name}"): name
    for name in (
        "TASK_NEW TASK_WAKEUP TASK_PREEMPT TASK_YIELD TASK_BLOCKED TASK_DEAD TASK_DEPARTED TASK_AFFINITY_CHANGED "
        "TASK_PRIORITY_CHANGED CPU_IDLE CPU_TICK CPU_BUSY CPU_AVAILABLE CPUS_CHANGED"
    ).split()
}
_OUTCOMES = {
    constant(f"TXN_{name}"): name
    for name in (
        "READY COMPLETE STALE NOT_FOUND NOT_RUNNABLE ON_CPU INVALID_CPU CPU_OFFLINE NOT_PERMITTED POISONED"
    ).split()
}
COMPLETE = constant("TXN_COMPLETE")
PREEMPTS = constant("TXN_PREEMPT")


def message_name(kind: int) -> str:
    """The name of a message type, without MSG_."""
    return _MESSAGES.get(kind, f"message {kind}")


def outcome_name(state: int) -> str:
    """The name of a transaction's state, without TXN_."""
    return _OUTCOMES.get(state, f"state {state}")


class Raw:
    """Turns records of one machine with ``cpus`` possible CPUs into events; feed it in the order of the ring."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._names: dict[int, tuple[int, int]] = {}
        self._strings: dict[tuple[int, int], str] = {}
        self._more_allowed: dict[int, int] = {}
        self._on_cpu: dict[int, int] = {}
        #: How many switches the kernel did not report: another task left a CPU than the last that came on it.
        self.hidden = 0

    def events(self, records: bytes, since: int = 0, until: int = 1 << 64) -> Iterator[Event]:
        """The events of ``records``, which have a header each, from ``since`` on and before ``until``."""
        for record in _RECORD.iter_unpack(records):
            if since <= record[0] < until:
                yield from self._expanded(*record)

    def _expanded(
        self,
        at: int,
        allowed: int,
        queue: int,
        gtid: int,
        slice_ns: int,
        comm_low: int,
        comm_high: int,
        other_comm_low: int,
        other_comm_high: int,
        type: int,
        cpu: int,
        tid: int,
        tgid: int,
        other: int,
        other_tgid: int,
        depth: int,
        enclave: int,
        state: int,
        flags: int,
        prio: int,
        other_prio: int,
        nr_allowed: int,
        target: int,
    ) -> Iterable[Event]:
        comm, other_comm = (comm_low, comm_high), (other_comm_low, other_comm_high)
        if type == _AFFINITY:
            self._more_allowed[tid] = self._more_allowed.get(tid, 0) | allowed << _WORD_BITS * depth
            return
        if type == _TXN:
            yield from self._seen(at, tid, tgid, comm)
            yield Transaction(at, tid, gtid, depth, target, state, flags, slice_ns)
            return
        yield from self._seen(at, tid, tgid, comm)
        yield from self._seen(at, other, other_tgid, other_comm)
        allowed = -1 if nr_allowed >= self._cpus else allowed | self._more_allowed.pop(tid, 0)
        ext = bool(flags & _EXT)
        if type == _SWITCH:
            if self._on_cpu.get(cpu, tid) != tid:
                self.hidden += 1
                yield Lost(at, 1)
            self._on_cpu[cpu] = other
            yield Switch(at, cpu, tid, self._text(comm), prio, state, other, self._text(other_comm), other_prio)
            if flags & _WAITS:
                why = TAKEN_OFF if state == PREEMPTED else YIELDED
                yield Queued(at, tid, why, cpu, other, allowed, ext, enclave, queue, depth)
            return
        yield Wakeup(at, cpu, other, tid, self._text(comm), prio, target)
        yield Queued(at, tid, MADE if type == _NEW else WOKEN, target, other, allowed, ext, enclave, queue, depth)

    def _seen(self, at: int, tid: int, tgid: int, comm: tuple[int, int]) -> Iterable[Event]:
        if tid and self._names.get(tid) != comm:
            self._names[tid] = comm
            yield Thread(at, tid, tgid, self._text(comm))

    def _text(self, comm: tuple[int, int]) -> str:
        found = self._strings.get(comm)
        if found is None:
            found = self._strings[comm] = _COMM.pack(*comm).split(b"\0")[0].decode(errors="replace")
        return found
