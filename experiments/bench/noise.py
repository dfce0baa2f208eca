# SPDX-License-Identifier: Apache-2.0
"""CPU time that other processes used while a workload ran."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from ...schedulers.processes import children

#: A measurement is marked if other processes used more CPUs than this.
LIMIT = 0.15

#: The kernel's tick, as the resolution of a clock that only its ticks advance; Python has no name for that clock.
_CLOCK_MONOTONIC_COARSE = 6
_TICK_S = time.clock_getres(_CLOCK_MONOTONIC_COARSE)
#: Units of times in /proc, a second: always 100, whatever the tick.
_UNITS = os.sysconf("SC_CLK_TCK")
#: Columns of /proc/stat: user, nice, system, irq, softirq and steal; guests are part of user.
_BUSY = (0, 1, 2, 5, 6, 7)


def busy_seconds() -> float:
    """The CPU time that this machine has used since boot, with what its hypervisor took."""
    times = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()[1:]
    return sum(int(times[column]) for column in _BUSY) / _UNITS


def tree_seconds(pid: int) -> float:
    """The CPU time of process ``pid`` and its descendants; 0 for those that have ended."""
    try:
        # The name, which is in parentheses, may have blanks.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / _UNITS + sum(map(tree_seconds, children(pid)))


class Watch:
    """Measures what other processes use from its creation until ``others()``.

    ``own`` returns the CPU time, so far, of the processes that the measurement itself needs.
    """

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own
        self._began, self._busy, self._used = time.monotonic(), busy_seconds(), self._own_seconds()

    def _own_seconds(self) -> float:
        return time.process_time() + self._own()

    def others(self, workload_seconds: float) -> float:
        """The number of CPUs that neither the workload, which used ``workload_seconds``, nor the measurement used."""
        took = time.monotonic() - self._began
        used = self._own_seconds() - self._used + workload_seconds
        return max(0.0, (busy_seconds() - self._busy - used) / took)


def is_noisy(others: float, seconds: float) -> bool:
    """Whether ``others`` CPUs in ``seconds`` are above LIMIT by more than the sampling error of /proc/stat."""
    # The kernel accounts a CPU's time at its ticks, by what runs then: the standard deviation of a sum of samples.
    return others > LIMIT + 0.5 * math.sqrt((os.cpu_count() or 1) * _TICK_S / seconds)
