# SPDX-License-Identifier: Apache-2.0
"""A sweep: each cell of a plan is measured and kept; a candidate that fails is left out, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ..bench.plan import Candidate
from ..bench.rounds import LOST, START, WORKLOAD
from ..bench.running import Interrupted, interruption
from ..candidates import Attached
from ..journal import Row
from ..other_scheduler import SchedulerLost
from . import running
from .store import Results
from .sweeps import Cell, Plan


class Observer:
    """Is told what happens; the methods do nothing here."""

    def starts(self, number: int, cell: Cell, left_s: float) -> None:
        """Cell ``number``, from 1, starts; all that are left take about ``left_s`` seconds."""

    def measured(self, cell: Cell, row: dict[str, Any]) -> None:
        """A cell has been measured and kept."""

    def failed(self, row: dict[str, Any]) -> None:
        """A candidate is left out."""


def measure(plan: Plan, results: Results, observer: Observer) -> int | None:
    """Measure the cells of ``plan`` that ``results`` lacks; returns the number of the signal that ended it, or None.

    Termination signals must be blocked. Raises GhostError if results cannot be kept.
    """
    todo = [cell for cell in plan.cells if (cell.candidate, cell.throughput) not in results.cells]
    clock = _Clock(plan)
    try:
        for number, cell in enumerate(todo):
            if cell.candidate in results.failures:
                continue
            interruption()
            left = [one for one in todo[number:] if one.candidate not in results.failures]
            observer.starts(plan.cells.index(cell) + 1, cell, clock.left_s(left))
            began = time.monotonic()
            row = measure_cell(plan, cell)
            results.add(row)
            if row["type"] == "failure":
                observer.failed(row)
            else:
                clock.took(cell, time.monotonic() - began)
                observer.measured(cell, row)
    except Interrupted as end:
        return end.number
    return None


def measure_cell(plan: Plan, cell: Cell) -> Row:
    """The row of a cell, or that of a failure; raises Interrupted."""

    def measured(scheduler: Attached) -> Row:
        return running.measure(plan.rocksdb(cell), plan.antagonist(cell), scheduler, plan.placement)

    row = attempt(plan.candidates[cell.candidate], plan.placement.enclave, measured)
    return {"candidate": cell.candidate, "throughput": cell.throughput, **row}


def attempt(candidate: Candidate, cpus: CpuSet, measured: Callable[[Attached], Row]) -> Row:
    """What ``measured`` returns under ``candidate``, of type "cell", or why that failed, of type "failure".

    Raises Interrupted.
    """
    kind = START
    try:
        with candidate.attached(cpus) as scheduler:
            interruption()
            kind = WORKLOAD
            try:
                row = measured(scheduler)
            except GhostError:
                scheduler.check()  # a scheduler that is gone is the reason of whatever failed
                raise
    except GhostError as error:
        interruption()
        kind = LOST if isinstance(error, SchedulerLost) else kind
        return {"type": "failure", "kind": kind, "reason": str(error), "hint": error.hint}
    return {"type": "cell", **row}


class _Clock:
    """How long cells have taken, compared with what was expected, and what is left."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._took, self._expected = plan, 0.0, 0.0

    def took(self, cell: Cell, seconds: float) -> None:
        self._took += seconds
        self._expected += self._plan.seconds(cell)

    def left_s(self, cells: Sequence[Cell]) -> float:
        slower = self._took / self._expected if self._expected else 1.0
        return slower * sum(self._plan.seconds(cell) for cell in cells)
