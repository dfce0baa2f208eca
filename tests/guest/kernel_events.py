# SPDX-License-Identifier: Apache-2.0
"""The kernel's counts of sched_ext events, which tell of errors in a scheduler, during a test.

``/sys/kernel/sched_ext/root/events`` has the sums, but is removed with the scheduler. The tracepoint
``sched_ext_event`` reports every increment, for every scheduler, with the task that caused it.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path

_INSTANCE = Path("/sys/kernel/tracing/instances/ghostbpf-tests")
_EVENT = _INSTANCE / "events/sched_ext/sched_ext_event"
_ENABLE_SEQ = Path("/sys/kernel/sched_ext/enable_seq")

BYPASS = "SCX_EV_BYPASS_ACTIVATE"
REPEAT = "SCX_EV_REENQ_REPEAT"

#: Events that a correct scheduler never causes. A kernel without one of these events never reports it.
NEVER = (
    "SCX_EV_REENQ_LOCAL_REPEAT",
    "SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE",
    "SCX_EV_INSERT_NOT_OWNED",
)

RECORDED = (*NEVER, REPEAT, BYPASS)

#: The kernel bypasses a scheduler once while it attaches and once while it detaches, on 6.16 as on 7.3; also during
#: system suspend, which a test expects, and after a suspected lock-up, which is always an error. BYPASS_DURATION and
#: BYPASS_DISPATCH count only within a bypass, so they need no check of their own.
_BYPASSES_PER_SCHEDULER = 2

#: A task is re-enqueued twice without running if a fair task takes the CPU that it was sent to, and then another one
#: takes the next CPU, after that CPU asked the core for a task and got this one. Sleepers of both classes on three CPUs
#: cause two of these in a minute (traced on 7.3). A loop of the core causes 128 in a second.
_REPEATS_BY_CHANCE = 8

_LINE = re.compile(
    r"^\s*(?P<task>\S.*-\d+)\s+\[(?P<cpu>\d+)\].*sched_ext_event: name (?P<name>\w+) delta (?P<delta>\d+)"
)


class KernelEvents:
    """The events since the object was made."""

    def __init__(self) -> None:
        with contextlib.suppress(FileExistsError):
            _INSTANCE.mkdir()
        (_EVENT / "filter").write_text(" || ".join(f'name == "{name}"' for name in RECORDED))
        (_INSTANCE / "trace").write_text("")
        (_EVENT / "enable").write_text("1")
        self._schedulers = _schedulers()
        self._expected: set[str] = set()
        self._repeats = _REPEATS_BY_CHANCE

    def expect(self, *names: str) -> None:
        """Accept events with these ``names`` in this test."""
        unknown = set(names) - set(RECORDED)
        assert not unknown, f"{unknown} is not recorded"
        self._expected.update(names)

    def allow_repeats_for(self, seconds: float) -> None:
        """Accept as many re-enqueued tasks as come by chance within this time."""
        self._repeats = max(_REPEATS_BY_CHANCE, round(seconds / 60 * _REPEATS_BY_CHANCE))

    def counts(self) -> dict[str, int]:
        """The number of times that each recorded event occurred."""
        counts: Counter[str] = Counter()
        for event in self._events():
            counts[event["name"]] += int(event["delta"])
        return counts

    def trouble(self) -> list[str]:
        """The unexpected events, one line for each name."""
        allowed = {
            BYPASS: _BYPASSES_PER_SCHEDULER * (_schedulers() - self._schedulers),
            REPEAT: self._repeats,
        }
        causes: dict[str, str] = {}
        for event in self._events():
            causes[event["name"]] = f"the last by {event['task']} on CPU {int(event['cpu'])}"
        return [
            f"{name}: {count} times, of which {allowed.get(name, 0)} are in order; {causes[name]}"
            for name, count in self.counts().items()
            if count > allowed.get(name, 0) and name not in self._expected
        ]

    def close(self) -> None:
        """Stop recording."""
        (_EVENT / "enable").write_text("0")

    def _events(self) -> list[re.Match[str]]:
        lines = (_INSTANCE / "trace").read_text(errors="replace").splitlines()
        return [found for line in lines if (found := _LINE.match(line))]


def _schedulers() -> int:
    """The number of schedulers that the kernel has enabled since it booted."""
    return int(_ENABLE_SEQ.read_text())
