# SPDX-License-Identifier: Apache-2.0
"""The order in which tasks run, without those that a higher class preempted."""

from __future__ import annotations

from collections.abc import Iterable

from workload import Child, Workload, sched_field, until


class Order:
    """Watches ``children``, each of which writes a line to the log when it runs.

    A task that another class preempts may run before it has written its line: such tasks are left out.
    """

    def __init__(self, workload: Workload, children: Iterable[Child]) -> None:
        self._workload = workload
        self._interrupted = {child: _interruptions(child) for child in children}
        workload.read_log()

    def ran(self) -> list[Child]:
        """Wait until each child has written a line and sleeps; returns them in the order of their first line."""
        missing = {child.index: child for child in self._interrupted}
        ran: list[Child] = []

        def enough() -> bool:
            for index, _ in self._workload.read_log():
                if index in missing:
                    ran.append(missing.pop(index))
            return not missing

        until(enough, "all children run")
        return self.of(child.asleep() for child in ran)

    def of(self, children: Iterable[Child]) -> list[Child]:
        """Those of ``children`` that were not preempted."""
        return [child for child in children if _interruptions(child) == self._interrupted[child]]


def _interruptions(child: Child) -> float:
    return sched_field(child.pid, "nr_involuntary_switches")
