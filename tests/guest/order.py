# SPDX-License-Identifier: Apache-2.0
"""In which order tasks run, as far as that is their scheduler's doing."""

from __future__ import annotations

from collections.abc import Iterable

from workload import Child, Workload, sched_field, until


class Order:
    """Watches ``children``, each of which says a word when it has the CPU.

    From whom another class takes the CPU, it may take it before there is a word: those are left out.
    """

    def __init__(self, workload: Workload, children: Iterable[Child]) -> None:
        self._workload = workload
        self._interrupted = {child: _interruptions(child) for child in children}
        workload.said()

    def ran(self) -> list[Child]:
        """Wait until each has said something and sleeps again; in which order they first did."""
        missing = {child.index: child for child in self._interrupted}
        ran: list[Child] = []

        def enough() -> bool:
            for index, _ in self._workload.said():
                if index in missing:
                    ran.append(missing.pop(index))
            return not missing

        until(enough, "all have run")
        return self.of(child.asleep() for child in ran)

    def of(self, children: Iterable[Child]) -> list[Child]:
        """Those of ``children`` that count."""
        return [child for child in children if _interruptions(child) == self._interrupted[child]]


def _interruptions(child: Child) -> float:
    return sched_field(child.pid, "nr_involuntary_switches")
