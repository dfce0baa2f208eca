# SPDX-License-Identifier: Apache-2.0
"""Events as packets of a Perfetto trace.

Switches and wakeups are ftrace's, from which Perfetto draws the tracks of CPUs and the states of tasks. All else are
track events: instants on a task's track, with what was decided as their arguments, and counters for queues. Traps:

- A track event needs a trusted_packet_sequence_id; without one it is dropped silently.
- Slices of one track may not overlap, so that whatever lasts is a state or a counter, and never a slice.
- Times are CLOCK_BOOTTIME, Perfetto's default; a clock snapshot relates the other clocks to it.
- Without the kernel's release, states of tasks are read by the numbers of kernels before 4.14.
- Names are not interned, so that a packet is complete in itself: a recording can begin and end anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any

from ...loaders.maps import possible_cpus
from ...schedulers import queues
from ...schedulers.cpuset import CpuSet
from .events import (
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
    message_name,
    outcome_name,
)
from .protobuf import data, fixed64, number, string
from .schema import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MACHINE_TRACK,
    MESSAGE_TRACKS,
    QUEUE_TRACKS,
    TASK_TRACKS,
    Annotation,
    Bundle,
    Category,
    Clock,
    ClockSnapshot,
    Ftrace,
    Packet,
    SchedSwitch,
    SchedWaking,
    SystemInfo,
    Trace,
    TrackDescriptor,
    TrackEvent,
)

_SEQUENCE = number(Packet.TRUSTED_PACKET_SEQUENCE_ID, 1)
_INSTANT = number(TrackEvent.TYPE, TrackEvent.INSTANT)
_COUNTER = number(TrackEvent.TYPE, TrackEvent.COUNTER)
#: Flows from messages to transactions have this bit; those from wakers to tasks have not.
_DECISION_FLOW = 1 << 63
ALL_CPUS = "all"


def _packet(content: bytes) -> bytes:
    return data(Trace.PACKET, content + _SEQUENCE)


def header(cpus: int | None = None) -> bytes:
    """The packets that a file begins with: the clocks, this kernel, and what made the file."""
    clocks = b"".join(
        data(
            ClockSnapshot.CLOCKS,
            number(ClockSnapshot.CLOCK_ID, clock) + number(ClockSnapshot.CLOCK_TIMESTAMP, time.clock_gettime_ns(id)),
        )
        for clock, id in (
            (Clock.BOOTTIME, time.CLOCK_BOOTTIME),
            (Clock.MONOTONIC, time.CLOCK_MONOTONIC),
            (Clock.REALTIME, time.CLOCK_REALTIME),
        )
    )
    kernel = os.uname()
    utsname = (
        string(SystemInfo.SYSNAME, kernel.sysname)
        + string(SystemInfo.VERSION, kernel.version)
        + string(SystemInfo.RELEASE, kernel.release)
        + string(SystemInfo.MACHINE, kernel.machine)
    )
    system = (
        data(SystemInfo.UTSNAME, utsname)
        + string(SystemInfo.TRACING_SERVICE_VERSION, f"{FORMAT_NAME}{FORMAT_VERSION}")
        + number(SystemInfo.NUM_CPUS, possible_cpus() if cpus is None else cpus)
    )
    return _packet(data(Packet.CLOCK_SNAPSHOT, clocks)) + _packet(data(Packet.SYSTEM_INFO, system))


class Encoder:
    """Encodes events in the order of time; packets of one encoder belong into one file."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._queues: dict[int, int] = {}
        self._made: set[int] = set()
        self._flow = 0
        self._flows: dict[int, int] = {}
        self._bundles: dict[int, list[bytes]] = {}
        self._packets: list[bytes] = []
        self._adders: dict[type[Event], Callable[[Any], None]] = {
            Switch: self._switch,
            Wakeup: self._wakeup,
            Queued: self._queued,
            Message: self._message,
            Transaction: self._transaction,
            Thread: self._thread,
            Enclave: self._enclave,
            Lost: self._lost,
            Ejected: self._ejected,
        }

    def encode(self, events: Iterable[Event]) -> list[bytes]:
        """The packets of ``events``."""
        for event in events:
            self._adders[type(event)](event)
        for cpu, bundled in self._bundles.items():
            self._packets.append(_packet(data(Packet.FTRACE_EVENTS, number(Bundle.CPU, cpu) + b"".join(bundled))))
        self._bundles.clear()
        packets, self._packets = self._packets, []
        return packets

    def _switch(self, event: Switch) -> None:
        content = _task(event.left_comm, event.left, event.left_prio, *_LEFT) + number(
            SchedSwitch.PREV_STATE, event.state
        )
        content += _task(event.came_comm, event.came, event.came_prio, *_CAME)
        self._ftrace(event.at, event.cpu, event.left, Ftrace.SCHED_SWITCH, content)

    def _wakeup(self, event: Wakeup) -> None:
        content = _task(event.comm, event.tid, event.prio, *_WOKEN) + number(SchedWaking.SUCCESS, 1)
        content += number(SchedWaking.TARGET_CPU, event.target)
        self._ftrace(event.at, event.cpu, event.waker, Ftrace.SCHED_WAKING, content)
        if event.waker:
            self._flow += 1
            self._flows[event.tid] = self._flow
            flow = fixed64(TrackEvent.FLOW_IDS, self._flow)
            self._instant(event.at, TASK_TRACKS | event.waker, Category.WAKES, f"wakes {event.comm}", flow)

    def _queued(self, event: Queued) -> None:
        allowed = ALL_CPUS if event.allowed == -1 else str(CpuSet.from_bits(event.allowed))
        arguments = (
            _integer("cpu", event.cpu)
            + _integer("other", event.other)
            + _text("allowed", allowed)
            + _integer("ext", event.ext)
            + _integer("enclave", event.enclave)
            + _pointer("queue", event.queue)
            + _integer("depth", event.depth)
        )
        if flow := self._flows.pop(event.tid, 0):
            arguments += fixed64(TrackEvent.TERMINATING_FLOW_IDS, flow)
        self._instant(event.at, TASK_TRACKS | event.tid, Category.QUEUED, event.why, arguments)
        if event.queue:
            self._count(event.at, event.queue, event.depth)

    def _message(self, event: Message) -> None:
        track = MESSAGE_TRACKS | event.enclave
        self._name_track(track, f"messages of enclave {event.enclave}")
        arguments = (
            _integer("type", event.kind)
            + _pointer("gtid", event.gtid)
            + _integer("seq", event.seq)
            + _integer("cpu", event.cpu)
            + _integer("enclave", event.enclave)
        )
        if event.gtid:
            arguments += fixed64(TrackEvent.FLOW_IDS, _decision_flow(event.gtid, event.seq))
        self._instant(event.at, track, Category.MESSAGE, self._told(event), arguments)

    def _transaction(self, event: Transaction) -> None:
        arguments = (
            _pointer("gtid", event.gtid)
            + _integer("seq", event.seq)
            + _integer("cpu", event.cpu)
            + _integer("state", event.state)
            + _integer("flags", event.flags)
            + _pointer("slice_ns", event.slice_ns)
        )
        if event.gtid:
            arguments += fixed64(TrackEvent.FLOW_IDS, _decision_flow(event.gtid, event.seq))
            what = f"{self._names.get(event.tid, '?')} to CPU {event.cpu}: {outcome_name(event.state)}"
        else:
            what = f"preempt CPU {event.cpu}: {outcome_name(event.state)}"
        self._instant(event.at, TASK_TRACKS | event.agent, Category.TRANSACTION, what, arguments)

    def _thread(self, event: Thread) -> None:
        self._names[event.tid] = event.comm
        track = TASK_TRACKS | event.tid
        thread = (
            number(TrackDescriptor.THREAD_PID, event.tgid)
            + number(TrackDescriptor.THREAD_TID, event.tid)
            + string(TrackDescriptor.THREAD_NAME, event.comm)
        )
        descriptor = number(TrackDescriptor.UUID, track) + data(TrackDescriptor.THREAD, thread)
        self._at(event.at, data(Packet.TRACK_DESCRIPTOR, descriptor))

    def _enclave(self, event: Enclave) -> None:
        arguments = _integer("enclave", event.id) + _text("policy", event.policy)
        arguments += _text("cpus", str(CpuSet.from_bits(event.cpus)))
        what = f"enclave {event.id}: {event.policy or 'destroyed'}"
        self._on_machine(event.at, Category.ENCLAVE, what, arguments)

    def _lost(self, event: Lost) -> None:
        self._on_machine(event.at, Category.LOST, f"{event.events} events lost", _integer("events", event.events))

    def _ejected(self, event: Ejected) -> None:
        self._on_machine(event.at, Category.EJECTED, "the core was ejected", _text("reason", event.reason))

    def _told(self, event: Message) -> str:
        name = message_name(event.kind)
        return f"{name} {self._names.get(event.gtid & 0xFFFFFFFF, '?')}" if event.gtid else f"{name} {event.cpu}"

    def _ftrace(self, at: int, cpu: int, tid: int, field: int, content: bytes) -> None:
        event = number(Ftrace.TIMESTAMP, at) + number(Ftrace.PID, tid) + data(field, content)
        self._bundles.setdefault(cpu, []).append(data(Bundle.EVENT, event))

    def _at(self, at: int, content: bytes) -> None:
        self._packets.append(_packet(number(Packet.TIMESTAMP, at) + content))

    def _instant(self, at: int, track: int, category: str, name: str, rest: bytes) -> None:
        event = _INSTANT + number(TrackEvent.TRACK_UUID, track) + _category(category)
        self._at(at, data(Packet.TRACK_EVENT, event + string(TrackEvent.NAME, name) + rest))

    def _on_machine(self, at: int, category: str, name: str, arguments: bytes) -> None:
        self._name_track(MACHINE_TRACK, "ghostbpf")
        self._instant(at, MACHINE_TRACK, category, name, arguments)

    def _count(self, at: int, queue: int, depth: int) -> None:
        track = QUEUE_TRACKS | self._queues.setdefault(queue, len(self._queues))
        self._name_track(track, f"depth of {queues.name(queue)}", data(TrackDescriptor.COUNTER, b""))
        event = _COUNTER + number(TrackEvent.TRACK_UUID, track) + number(TrackEvent.COUNTER_VALUE, depth)
        self._at(at, data(Packet.TRACK_EVENT, event + _category(Category.QUEUE)))

    def _name_track(self, track: int, name: str, more: bytes = b"") -> None:
        if track not in self._made:
            self._made.add(track)
            descriptor = number(TrackDescriptor.UUID, track) + string(TrackDescriptor.NAME, name) + more
            self._packets.append(_packet(data(Packet.TRACK_DESCRIPTOR, descriptor)))


_LEFT = (SchedSwitch.PREV_COMM, SchedSwitch.PREV_PID, SchedSwitch.PREV_PRIO)
_CAME = (SchedSwitch.NEXT_COMM, SchedSwitch.NEXT_PID, SchedSwitch.NEXT_PRIO)
_WOKEN = (SchedWaking.COMM, SchedWaking.PID, SchedWaking.PRIO)


@lru_cache(1 << 16)
def _task(comm: str, tid: int, prio: int, comm_field: int, tid_field: int, prio_field: int) -> bytes:
    return string(comm_field, comm) + number(tid_field, tid) + number(prio_field, prio)


@cache
def _category(name: str) -> bytes:
    return string(TrackEvent.CATEGORIES, name)


@cache
def _named(name: str) -> bytes:
    return string(Annotation.NAME, name)


def _integer(name: str, value: int) -> bytes:
    return data(TrackEvent.DEBUG_ANNOTATIONS, _named(name) + number(Annotation.UINT_VALUE, value))


def _pointer(name: str, value: int) -> bytes:
    return data(TrackEvent.DEBUG_ANNOTATIONS, _named(name) + number(Annotation.POINTER_VALUE, value))


def _text(name: str, value: str) -> bytes:
    return data(TrackEvent.DEBUG_ANNOTATIONS, _named(name) + string(Annotation.STRING_VALUE, value))


def _decision_flow(gtid: int, seq: int) -> int:
    return _DECISION_FLOW | (gtid << 16 ^ seq) & (_DECISION_FLOW - 1)
