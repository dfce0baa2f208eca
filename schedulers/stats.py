# SPDX-License-Identifier: Apache-2.0
"""Statistics that the core always keeps for each enclave: waits, turns, and waiting tasks.

    before = enclave.stats()
    ...
    (enclave.stats() - before).wakeup_wait.percentile(0.99)     # seconds

bpf/core/stats.bpf.h is the kernel's half. A histogram has a bucket for each power of two, so a percentile is right
within a factor of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

from ..loaders import kernel_types

#: The end of the first bucket of a histogram of times, in seconds.
_FIRST_END_S = 2**10 / 1e9


@dataclass(frozen=True)
class Histogram:
    """``counts`` of values, by bucket: bucket 0 has those below ``first_end``, each other one ends at twice its start.

    The last bucket has no end. ``sum`` is that of all values.
    """

    counts: tuple[int, ...]
    sum: float
    first_end: float

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def end(self, bucket: int) -> float:
        """The end of a bucket, which holds no value of this size or above."""
        return self.first_end * (1 << bucket)

    def percentile(self, share: float) -> float:
        """A value that a ``share`` of all values do not exceed, by interpolation in its bucket; 0 without values."""
        rank, seen = share * self.count, 0
        for bucket, count in enumerate(self.counts):
            if count and seen + count >= rank:
                start = self.end(bucket - 1) if bucket else 0.0
                return start + (self.end(bucket) - start) * (rank - seen) / count
            seen += count
        return 0.0

    def __add__(self, other: Self) -> Self:
        counts = (one + two for one, two in zip(self.counts, other.counts, strict=True))
        return type(self)(tuple(counts), self.sum + other.sum, self.first_end)

    def __sub__(self, before: Self) -> Self:
        counts = (now - then for now, then in zip(self.counts, before.counts, strict=True))
        return type(self)(tuple(counts), self.sum - before.sum, self.first_end)


@dataclass(frozen=True)
class Stats:
    """Statistics of an enclave since it was made, all CPUs together; times are in seconds, counters in ns.

    ``wakeup_wait``: from a wakeup to a CPU; ``preempted_wait``: from the end of a turn to the next, for a task that is
    still runnable. ``turn``: time on a CPU. ``depth``: how many tasks wait, at each tick of a CPU that runs a task of
    the enclave. ``class_preemptions`` are turns that a higher class ended, ``slice_ends`` those that the slice, or the
    policy, ended. ``idle_wait_ns``: the part of all waits in which the CPU that the task then got idled.
    ``idle_ticks``: the ticks of ``depth`` at which a task waited while a CPU of the enclave idled.
    """

    wakeup_wait: Histogram
    preempted_wait: Histogram
    turn: Histogram
    depth: Histogram
    class_preemptions: int
    slice_ends: int
    idle_wait_ns: int
    idle_ticks: int

    @classmethod
    def of(cls, records: Iterable[Any]) -> Self:
        """The sum of ``records``, one ``struct counters`` or more."""
        first, *rest = map(cls._of_one, records)
        return sum(rest, first)

    @classmethod
    def _of_one(cls, record: Any) -> Self:
        wakeup, preempted = (Histogram(tuple(w.counts), w.sum_ns / 1e9, _FIRST_END_S) for w in record.waits)
        return cls(
            wakeup,
            preempted,
            Histogram(tuple(record.turns), record.runtime_ns / 1e9, _FIRST_END_S),
            Histogram(tuple(record.depths), int(record.waiting), 1),
            int(record.class_preemptions),
            int(record.slice_ends),
            int(record.idle_wait_ns),
            int(record.idle_ticks),
        )

    @property
    def work_conservation(self) -> float | None:
        """The share of ticks at which no task waited while a CPU idled; None without ticks."""
        ticks = self.depth.count
        return 1 - self.idle_ticks / ticks if ticks else None

    def __add__(self, other: Self) -> Self:
        return self._each(other, lambda one, two: one + two)

    def __sub__(self, before: Self) -> Self:
        return self._each(before, lambda now, then: now - then)

    def _each(self, other: Self, combine: Callable[[Any, Any], Any]) -> Self:
        return type(self)(*(combine(value, getattr(other, name)) for name, value in vars(self).items()))


def is_supported() -> bool:
    """Whether this kernel records how long tasks wait (CONFIG_SCHED_INFO): without that, no statistics are kept."""
    return "last_queued" in kernel_types.struct("sched_info").members
