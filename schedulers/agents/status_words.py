# SPDX-License-Identifier: Apache-2.0
"""Status words: the state of each task right now, read in place where the core writes it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ...loaders.maps import MmapArray
from ..core import constant, ffi
from .layout import column
from .shared import Agents
from .task import ON_CPU, WAITING, StatusWord, Task, word_struct

#: The weight of a cgroup with cpu.weight 100.
CGROUP_WEIGHT_ONE = constant("CGROUP_WEIGHT_ONE")


class StatusWords:
    """The status words of an enclave, by number; ``cgroups`` are those of their tasks, if the policy weighs cgroups."""

    def __init__(self, agents: Agents, cgroups: MmapArray | None = None) -> None:
        self._agents, self._struct = agents, word_struct()
        self._memory = memory = agents.status_words.view()
        self._gtids, self._states, self._cpus, self._since, self._runtimes, self._channels = (
            column(memory, "status_word", member)
            for member in ("gtid", "state", "cpu", "since_ns", "runtime_ns", "channel")
        )
        #: Whether there are CPUs from 64 on, which neither messages nor the words themselves tell of.
        self.is_wide = agents.allowed_rest is not None
        self._rest = memoryview(b"") if agents.allowed_rest is None else agents.allowed_rest.view()
        self._rest_size = ffi().sizeof("struct allowed_rest")
        pairs = memoryview(b"") if cgroups is None else cgroups.view()
        self._cgroups, self._weights = (column(pairs, "task_cgroup", member) for member in ("cgroup", "weight"))

    @property
    def columns(self) -> dict[str, memoryview]:
        """What the native ``Turns`` reads."""
        rest = self._rest.cast("Q")
        return {"gtids": self._gtids, "states": self._states, "channels": self._channels, "allowed_rest": rest}

    def __len__(self) -> int:
        return len(self._agents.status_words)

    def __getitem__(self, number: int) -> StatusWord:
        word = StatusWord._make(self._struct.unpack_from(self._memory, number * self._struct.size))
        return self._widened(number, word)

    def allowed_rest(self, number: int) -> int:
        """The bits, from 64 on, of the affinity of the task with word ``number``; only if is_wide."""
        start = number * self._rest_size
        return int.from_bytes(self._rest[start : start + self._rest_size], "little") << 64

    def _widened(self, number: int, word: StatusWord) -> StatusWord:
        return word._replace(allowed=word.allowed | self.allowed_rest(number)) if self.is_wide else word

    def waits(self, task: Task) -> bool:
        """Whether ``task`` waits for a CPU right now."""
        return bool(self._gtids[task.word] == task.gtid and self._states[task.word] == WAITING)

    def channel(self, task: Task) -> int | None:
        """The channel that gets the messages of ``task``; None if the task is gone."""
        return self._channels[task.word] if self._gtids[task.word] == task.gtid else None

    def cgroup(self, task: Task) -> tuple[int, int]:
        """The number of the cgroup of ``task``, and its weight; 0 if it is the root, or no weight of one is in use."""
        word = task.word
        if not (cgroup := self._cgroups[word]) or self._gtids[word] != task.gtid:
            return 0, CGROUP_WEIGHT_ONE
        return cgroup, self._weights[word] or CGROUP_WEIGHT_ONE

    def on_cpu(self, task: Task) -> tuple[int, int] | None:
        """The CPU that runs ``task`` right now, and since when; None where none does."""
        word = task.word
        if self._gtids[word] != task.gtid or self._states[word] != ON_CPU:
            return None
        return self._cpus[word], self._since[word]

    def counted_ns(self, task: Task) -> int:
        """The CPU time of ``task`` up to when it last left a CPU."""
        return self._runtimes[task.word] if self._gtids[task.word] == task.gtid else task.runtime_ns

    def runtime_ns(self, task: Task) -> int:
        """The CPU time of ``task`` up to now, which includes what no message has told yet."""
        if self._gtids[task.word] != task.gtid:
            return task.runtime_ns
        running = self.on_cpu(task)
        return int(self._runtimes[task.word]) + (time.monotonic_ns() - running[1] if running else 0)

    def in_use(self) -> Iterator[tuple[int, StatusWord]]:
        """The number and a copy of each word that belongs to a task."""
        records = self._struct.iter_unpack(bytes(self._memory[: self._agents.words_used * self._struct.size]))
        for number, record in enumerate(records):
            word = StatusWord._make(record)
            if word.gtid:
                yield number, self._widened(number, word)
