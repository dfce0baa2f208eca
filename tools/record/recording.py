# SPDX-License-Identifier: Apache-2.0
"""A recorder's user side: all events into a file, or the last seconds of them when they are asked for."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...loaders.closing import Closing
from ...loaders.errors import GhostError
from ...loaders.maps import possible_cpus
from .events import FORMAT, Enclave, Event, Lost, Raw
from .perfetto import Encoder, header
from .source import Records, now

_SIZE = struct.calcsize(f"=8x{FORMAT}")
_AT = struct.Struct("=Q")
#: How many records are encoded between two reads of the ring, and how much memory may wait for that.
_PORTION = 2000 * _SIZE
_BACKLOG_BYTES = 256 << 20


class CannotWrite(GhostError):
    """A recording's file cannot be written; the packets before are in it, whole."""

    def __init__(self, path: Path, error: OSError, size: int) -> None:
        kept = f"what was recorded until then is there ({size} bytes); " if size else ""
        super().__init__(f"cannot write {path}: {error.strerror}", hint=f"{kept}-o names another file")


class RecordingFile(Closing):
    """A file of packets. It has whole packets at any time, except within a write."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CannotWrite(path, error, 0) from None

    def write(self, packets: Sequence[bytes]) -> None:
        """Append packets; raises CannotWrite."""
        content, written = b"".join(packets), 0
        try:
            while written < len(content):
                written += os.write(self._fd, content[written:])
        except OSError as error:
            for packet in packets:
                if written < len(packet):
                    break
                written -= len(packet)
                self.size += len(packet)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise CannotWrite(self.path, error, self.size) from None
        self.size += len(content)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Stream(Closing):
    """Writes all events to a file, as they come."""

    def __init__(self, path: Path) -> None:
        self._file = RecordingFile(path)
        self._raw, self._encoder = Raw(possible_cpus()), Encoder()
        self._backlog: deque[Records | list[Event]] = deque()
        self._waiting = 0
        self.count = 0
        self._file.write([header()])

    @property
    def size(self) -> int:
        """The size of the file."""
        return self._file.size

    @property
    def hidden(self) -> int:
        """How many switches the kernel did not report, of those that are written."""
        return self._raw.hidden

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be encoded that no more should be read: the ring then counts what it drops."""
        return self._waiting > _BACKLOG_BYTES

    def take(self, records: Iterable[Records], events: list[Event]) -> None:
        """More to write."""
        for one in records:
            self.count += len(one.content) // _SIZE
            self._waiting += len(one.content)
            for start in range(0, len(one.content), _PORTION):
                self._backlog.append(one._replace(content=one.content[start : start + _PORTION]))
        if events:
            self._backlog.append(events)

    def work(self, seconds: float) -> bool:
        """Write for up to that time, and return whether more is left; raises CannotWrite."""
        until = time.monotonic() + seconds
        while self._backlog:
            portion = self._backlog.popleft()
            if isinstance(portion, Records):
                self._waiting -= len(portion.content)
                self._file.write(self._encoder.encode(self._raw.events(*portion)))
            else:
                self._file.write(self._encoder.encode(portion))
            if time.monotonic() >= until:
                break
        return bool(self._backlog)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FlightRecorder:
    """Keeps the last ``seconds`` of events in memory; dumps go to ``path``, and further ones to PATH.2, PATH.3 …"""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._ns = path, int(seconds * 1e9)
        self._records: deque[Records] = deque()
        self._events: deque[Event] = deque()
        self._enclaves: dict[int, Enclave] = {}
        self._dumps = 0
        self.count = 0
        self.size = 0

    def take(self, records: Iterable[Records], events: Iterable[Event]) -> None:
        """More to keep; what is too old is forgotten."""
        for one in records:
            self._records.append(one)
            self.count += len(one.content) // _SIZE
            self.size += len(one.content)
        self._events.extend(events)
        since = now() - self._ns
        while self._records and _last(self._records[0]) < since:
            self.size -= len(self._records.popleft().content)
        while self._events and self._events[0].at < since:
            old = self._events.popleft()
            if isinstance(old, Enclave):
                self._enclaves[old.id] = old

    def dump(self) -> tuple[Path, int]:
        """Write a file with what is kept, and return its name and size; raises CannotWrite."""
        self._dumps += 1
        path = self._path if self._dumps == 1 else self._path.with_name(f"{self._path.name}.{self._dumps}")
        since = now() - self._ns
        raw, encoder = Raw(possible_cpus()), Encoder()
        with RecordingFile(path) as file:
            file.write([header()])
            file.write(encoder.encode([one._replace(at=since) for one in self._enclaves.values() if one.policy]))
            file.write(encoder.encode(self._events))
            for one in self._records:
                file.write(encoder.encode(raw.events(one.content, max(one.since, since), one.until)))
            return path, file.size


def _last(records: Records) -> int:
    """The time of the last of ``records``."""
    return int(_AT.unpack_from(records.content, len(records.content) - _SIZE + 8)[0])


class Losses:
    """How many events were lost; each loss is an event, too, so that the recording tells it."""

    def __init__(self) -> None:
        self.count = self._dropped = 0

    def noted(self, dropped: int, events: list[Event]) -> list[Event]:
        """``events``, and if the kernel has dropped more than at the last call, one that says so."""
        more, self._dropped = dropped - self._dropped, dropped
        noted = [*events, Lost(now(), more)] if more > 0 else events
        self.count += sum(event.events for event in noted if isinstance(event, Lost))
        return noted
