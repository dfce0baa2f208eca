# SPDX-License-Identifier: Apache-2.0
"""Status words: what is so about each task right now, read where the kernel writes it."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from ..agents import Agents
from ..core import ffi
from .task import ON_CPU, WAITING, StatusWord, Task, word_format

_STATE, _CPU = (ffi().offsetof("struct status_word", field) // 4 for field in ("state", "cpu"))
_RUNTIME, _SINCE = (ffi().offsetof("struct status_word", field) // 8 for field in ("runtime_ns", "since_ns"))


class StatusWords:
    """The status words of an enclave, by number."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._format = struct.Struct(f"={word_format()}")
        self._memory = agents.status_words.view()
        self._longs, self._words = self._memory.cast("Q"), self._memory.cast("I")

    def __getitem__(self, number: int) -> StatusWord:
        return StatusWord._make(self._format.unpack_from(self._memory, number * self._format.size))

    def waits(self, task: Task) -> bool:
        """Whether ``task`` waits for a CPU right now."""
        at = task.word * self._format.size
        return bool(self._longs[at // 8] == task.gtid and self._words[at // 4 + _STATE] == WAITING)

    def on_cpu(self, task: Task) -> tuple[int, int] | None:
        """The CPU that ``task`` is on right now, and since when; None where it is on none."""
        at = task.word * self._format.size
        if self._longs[at // 8] != task.gtid or self._words[at // 4 + _STATE] != ON_CPU:
            return None
        return self._words[at // 4 + _CPU], self._longs[at // 8 + _SINCE]

    def runtime_ns(self, task: Task) -> int:
        """The CPU time of ``task`` up to now: messages may still be on their way, and its turn may not be over."""
        at = task.word * self._format.size
        if self._longs[at // 8] != task.gtid:
            return task.runtime_ns
        place = self.on_cpu(task)
        return int(self._longs[at // 8 + _RUNTIME]) + (time.monotonic_ns() - place[1] if place else 0)

    def in_use(self) -> Iterator[tuple[int, StatusWord]]:
        """The number and a copy of each word that a task has."""
        records = self._format.iter_unpack(bytes(self._memory[: self._agents.words_used * self._format.size]))
        for number, record in enumerate(records):
            if record[0]:
                yield number, StatusWord._make(record)
