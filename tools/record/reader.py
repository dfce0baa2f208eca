# SPDX-License-Identifier: Apache-2.0
"""Reads the events of a recording back from its file; the inverse of perfetto.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from .events import Ejected, Enclave, Event, Lost, Message, Queued, Switch, Thread, Transaction, Wakeup
from .perfetto import ALL_CPUS
from .protobuf import CutOff, Malformed, fields, message, read_varint, signed, text
from .schema import (
    FORMAT_NAME,
    FORMAT_VERSION,
    Annotation,
    Bundle,
    Category,
    Ftrace,
    Packet,
    SchedSwitch,
    SchedWaking,
    SystemInfo,
    Trace,
    TrackDescriptor,
    TrackEvent,
)

_HINT = "make one: sudo ghostbpf record -o FILE"
_PACKET_KEY = Trace.PACKET << 3 | 2
_TID, _U64 = (1 << 32) - 1, (1 << 64) - 1


class BadRecording(GhostError):
    """A file cannot be read as a recording."""

    exit_status = 1


@dataclass
class Recording:
    """What a file has; ``cut_off``: it ends inside a packet, for the recorder was killed or the disk was full."""

    path: Path
    release: str = ""
    cpus: int = 0
    events: list[Event] = field(default_factory=list)
    cut_off: bool = False


def read(path: Path) -> Recording:
    """Read a recording; raises BadRecording, also for a recording of another version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRecording(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    recording = Recording(path)
    version = None
    try:
        for packet in _packets(content):
            if version is None and (system := packet.get(Packet.SYSTEM_INFO)):
                version = _read_system(recording, _bytes(system))
            elif version is not None:
                recording.events.extend(_events(packet))
    except CutOff:
        recording.cut_off = True
    except Malformed as error:
        raise BadRecording(f"{path} is damaged, or no recording: {error}", hint=_HINT) from None
    if version is None:
        what = "is cut off in its first packets" if recording.cut_off and _begins_as_trace(content) else ""
        what = what or ("is empty" if not content else "is not a recording of ghostbpf")
        raise BadRecording(f"{path} {what}", hint=_HINT)
    if version != FORMAT_VERSION:
        raise BadRecording(
            f"{path} is a recording in format {version}, and this ghostbpf reads format {FORMAT_VERSION}",
            hint="read it with the ghostbpf that made it",
        )
    return recording


def _begins_as_trace(content: bytes) -> bool:
    return content[:1] == bytes([_PACKET_KEY])


def _packets(content: bytes) -> Iterator[dict[int, int | bytes]]:
    at = 0
    while at < len(content):
        if content[at] != _PACKET_KEY:
            raise Malformed(f"no packet at byte {at}")
        size, at = read_varint(content, at + 1)
        if at + size > len(content):
            raise CutOff("cut off in a packet")
        try:
            yield message(content[at : at + size])
        except CutOff:
            raise Malformed(f"the packet at byte {at} is shorter than what it has") from None
        at += size


def _read_system(recording: Recording, content: bytes) -> int | None:
    system = message(content)
    name = text(_bytes(system.get(SystemInfo.TRACING_SERVICE_VERSION, b"")))
    version = name.removeprefix(FORMAT_NAME)
    if version == name or not version.isdecimal():
        return None
    recording.cpus = _int(system.get(SystemInfo.NUM_CPUS, 0))
    utsname = message(_bytes(system.get(SystemInfo.UTSNAME, b"")))
    recording.release = text(_bytes(utsname.get(SystemInfo.RELEASE, b"")))
    return int(version)


def _events(packet: dict[int, int | bytes]) -> Iterator[Event]:
    try:
        if bundle := packet.get(Packet.FTRACE_EVENTS):
            yield from _ftrace(_bytes(bundle))
        elif event := packet.get(Packet.TRACK_EVENT):
            yield from _track_event(_int(packet.get(Packet.TIMESTAMP, 0)), _bytes(event))
        elif descriptor := packet.get(Packet.TRACK_DESCRIPTOR):
            yield from _thread(_int(packet.get(Packet.TIMESTAMP, 0)), _bytes(descriptor))
    except (KeyError, TypeError, ValueError, CutOff) as error:
        raise Malformed(f"a packet that ghostbpf does not write: {error}") from None


def _ftrace(content: bytes) -> Iterator[Event]:
    cpu = 0
    for number, value in fields(content):
        if number == Bundle.CPU:
            cpu = _int(value)
        elif number == Bundle.EVENT:
            event = message(_bytes(value))
            at, pid = _int(event[Ftrace.TIMESTAMP]), _int(event[Ftrace.PID])
            if switch := event.get(Ftrace.SCHED_SWITCH):
                m = message(_bytes(switch))
                yield Switch(
                    at,
                    cpu,
                    _int(m[SchedSwitch.PREV_PID]),
                    text(_bytes(m[SchedSwitch.PREV_COMM])),
                    _int(m[SchedSwitch.PREV_PRIO]),
                    _int(m[SchedSwitch.PREV_STATE]),
                    _int(m[SchedSwitch.NEXT_PID]),
                    text(_bytes(m[SchedSwitch.NEXT_COMM])),
                    _int(m[SchedSwitch.NEXT_PRIO]),
                )
            elif waking := event.get(Ftrace.SCHED_WAKING):
                m = message(_bytes(waking))
                comm, prio = text(_bytes(m[SchedWaking.COMM])), _int(m[SchedWaking.PRIO])
                yield Wakeup(at, cpu, pid, _int(m[SchedWaking.PID]), comm, prio, _int(m[SchedWaking.TARGET_CPU]))


def _thread(at: int, content: bytes) -> Iterator[Event]:
    descriptor = message(content)
    if thread := descriptor.get(TrackDescriptor.THREAD):
        m = message(_bytes(thread))
        tid, tgid = _int(m[TrackDescriptor.THREAD_TID]), _int(m[TrackDescriptor.THREAD_PID])
        yield Thread(at, tid, tgid, text(_bytes(m[TrackDescriptor.THREAD_NAME])))


def _track_event(at: int, content: bytes) -> Iterator[Event]:
    category = name = ""
    track = 0
    arguments: dict[str, int | str] = {}
    for number, value in fields(content):
        if number == TrackEvent.CATEGORIES:
            category = text(_bytes(value))
        elif number == TrackEvent.NAME:
            name = text(_bytes(value))
        elif number == TrackEvent.TRACK_UUID:
            track = _int(value)
        elif number == TrackEvent.DEBUG_ANNOTATIONS:
            argument = message(_bytes(value))
            key = text(_bytes(argument[Annotation.NAME]))
            if (string := argument.get(Annotation.STRING_VALUE)) is not None:
                arguments[key] = text(_bytes(string))
            elif (pointer := argument.get(Annotation.POINTER_VALUE)) is not None:
                arguments[key] = _int(pointer) & _U64
            else:
                arguments[key] = _int(argument[Annotation.UINT_VALUE])
    if make := _MAKERS.get(category):
        yield make(at, track & _TID, name, arguments)


def _queued(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    allowed = str(arguments.pop("allowed"))
    bits = -1 if allowed == ALL_CPUS else CpuSet.parse(allowed).bits if allowed else 0
    cpu, other, ext, enclave, queue, depth = (int(arguments[k]) for k in ("cpu other ext enclave queue depth".split()))
    return Queued(at, tid, name, cpu, other, bits, bool(ext), enclave, queue, depth)


def _message(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    return Message(at, *(int(arguments[key]) for key in ("type", "gtid", "seq", "cpu", "enclave")))


def _transaction(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    return Transaction(at, tid, *(int(arguments[key]) for key in "gtid seq cpu state flags slice_ns".split()))


def _enclave(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    cpus = str(arguments["cpus"])
    bits = CpuSet.parse(cpus).bits if cpus else 0
    return Enclave(at, int(arguments["enclave"]), str(arguments["policy"]), bits)


def _lost(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    return Lost(at, int(arguments["events"]))


def _ejected(at: int, tid: int, name: str, arguments: dict[str, int | str]) -> Event:
    return Ejected(at, str(arguments["reason"]))


_MAKERS: dict[str, Callable[[int, int, str, dict[str, int | str]], Event]] = {
    Category.QUEUED: _queued,
    Category.MESSAGE: _message,
    Category.TRANSACTION: _transaction,
    Category.ENCLAVE: _enclave,
    Category.LOST: _lost,
    Category.EJECTED: _ejected,
}


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise Malformed("bytes in place of a number")
    return signed(value)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise Malformed("a number in place of bytes")
    return value
