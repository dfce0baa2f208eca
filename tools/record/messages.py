# SPDX-License-Identifier: Apache-2.0
"""The messages of the core to agents, read from the agents' rings beside the agents.

The core's side of a ring cannot be traced: kernels build the functions of ring buffers without the hooks for that. A
second reader sees each message, at no cost to the core, unless more come between two reads than a ring holds.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from ...loaders import BpfError, abi
from ...loaders.maps import Hash, Map, possible_cpus
from ...loaders.ring import RingTail
from ...schedulers.core import ffi
from .events import Lost, Message

_FORMAT = abi.struct_format(ffi(), "struct message")
_MEMBERS = [name for name, _ in ffi().typeof("struct message").fields]
_GTID, _AT, _SEQ, _TYPE, _CPU = (1 + _MEMBERS.index(name) for name in ("gtid", "at_ns", "seq", "type", "cpu"))


class _Rings(NamedTuple):
    """The rings of an enclave's agents by channel; ``identity`` differs from those of a later policy's agents."""

    identity: tuple[int, int]
    map: Hash
    tails: dict[int, tuple[int, RingTail]]


class Messages:
    """The messages to all agents; of those that are there at the first look, only later messages."""

    def __init__(self) -> None:
        self._rings: dict[int, _Rings] = {}
        self._is_first = True

    def follow(self, agents: dict[int, Path]) -> None:
        """Read the agents of these enclaves, by the pin of the map of their rings. Raises BpfError."""
        for enclave in self._rings.keys() - agents.keys():
            del self._rings[enclave]
        for enclave, path in agents.items():
            try:
                stat = os.stat(path)
                self._follow(enclave, path, (stat.st_ino, stat.st_ctime_ns))
            except (OSError, BpfError) as error:
                if error.errno != errno.ENOENT:
                    raise
        self._is_first = False

    def read(self) -> list[Message | Lost]:
        """The messages since the last call, in the order of each channel."""
        to_boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        events: list[Message | Lost] = []
        for enclave, rings in self._rings.items():
            for _, tail in rings.tails.values():
                records, lost = tail.read()
                if lost:
                    events.append(Lost(time.clock_gettime_ns(time.CLOCK_BOOTTIME), lost))
                events.extend(self._message(record, to_boottime, enclave) for record in records)
        return events

    @staticmethod
    def _message(record: tuple[Any, ...], to_boottime: int, enclave: int) -> Message:
        at, cpu = record[_AT] + to_boottime, max(record[_CPU], 0)
        return Message(at, record[_TYPE], record[_GTID], record[_SEQ], cpu, enclave)

    def _follow(self, enclave: int, path: Path, identity: tuple[int, int]) -> None:
        rings = self._rings.get(enclave)
        if rings is None or rings.identity != identity:
            rings = self._rings[enclave] = _Rings(identity, Hash(Map.open(path), ffi(), "u32", "u32"), {})
        for channel in range(1 + possible_cpus()):
            known, _ = rings.tails.get(channel, (0, None))
            id = rings.map.get(channel)
            if not id or id == known:
                continue
            with Map.by_id(id) as ring:
                rings.tails[channel] = id, RingTail(ring, _FORMAT, from_start=not self._is_first)
