# SPDX-License-Identifier: Apache-2.0
"""Which profile holds now, by the machine's load and by the processes that run."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from .config import Conditions, Profile

_SAMPLES = 5


class CpuLoad:
    """The share of all CPUs' time that is in use, over the last _SAMPLES calls of read()."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._times = deque([_times(path)], maxlen=_SAMPLES + 1)

    def read(self) -> float:
        """The share, from 0 to 1; 0 if no tick has passed."""
        self._times.append(_times(self._path))
        busy, whole = (new - old for new, old in zip(self._times[-1], self._times[0], strict=True))
        return min(max(busy / whole, 0.0), 1.0) if whole > 0 else 0.0


def _times(path: Path) -> tuple[int, int]:
    """The ticks in use, and all ticks, summed over CPUs since boot; see proc_stat(5)."""
    with path.open() as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    busy = user + nice + system + irq + softirq
    return busy, busy + idle + iowait + steal


def process_names() -> set[str]:
    """The names of all processes."""
    names = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                names.add(Path("/proc", entry, "comm").read_bytes()[:-1].decode(errors="backslashreplace"))
            except OSError:
                continue  # it has ended
    return names


class ProfileChooser:
    """Chooses the first profile whose conditions hold.

    A profile begins when its conditions have held for ``for_s`` seconds, and ends when they have not for as long.
    Those that hold at the first call begin at once: a service that starts again goes on where it was.
    """

    def __init__(self, profiles: Iterable[Profile]) -> None:
        self.profiles = tuple(profiles)
        self._on: set[str] = set()
        self._since: dict[str, float] = {}  # when the conditions began to differ from what _on says
        self._is_first = True

    @property
    def needs_names(self) -> bool:
        """Whether a condition names processes."""
        return any(profile.when.running for profile in self.profiles)

    def choose(self, at_s: float, load: float, names: Collection[str]) -> str | None:
        """The profile that holds at ``at_s``, in seconds of any steady clock; None if none does."""
        for profile in self.profiles:
            name = profile.name
            if holds(profile.when, load, names) == (name in self._on):
                self._since.pop(name, None)
            elif self._is_first or at_s - self._since.setdefault(name, at_s) >= profile.when.for_s:
                self._on ^= {name}
                self._since.pop(name, None)
        self._is_first = False
        return next((profile.name for profile in self.profiles if profile.name in self._on), None)


def holds(when: Conditions, load: float, names: Collection[str]) -> bool:
    """Whether all conditions hold at this moment."""
    return (
        (when.load_above is None or load > when.load_above)
        and (when.load_below is None or load < when.load_below)
        and (not when.running or any(fnmatchcase(name, glob) for name in names for glob in when.running))
    )
