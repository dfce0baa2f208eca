# SPDX-License-Identifier: Apache-2.0
"""The rounds of a plan: each candidate is started, each workload run under it, and what fails is left out."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

from ...loaders.errors import GhostError
from ..candidates import EEVDF
from ..other_scheduler import SchedulerLost
from .plan import AGAIN, Candidate, Plan
from .running import Interrupted, Measurement, interruption, run
from .workloads import Workload

#: A run under a candidate may take this many times as long as the longest under EEVDF, and this much longer.
_SLOWER, _GRACE_S = 20, 60.0
#: A workload's first run may take this many times as long as on a usual machine; an emulated one is 20 times slower.
_FIRST_SLOWER = 100
#: How long a scheduler that a command attached goes on with its start-up.
_SETTLE_S = 1.0

START, LOST, WORKLOAD, STOP = "start", "ejected", "workload", "stop"


@dataclass(frozen=True)
class Failure:
    """Why ``candidate`` is left out, from ``round`` on; or, with EEVDF as the candidate, ``workload``.

    ``kind`` is START or STOP (the scheduler did not start or end), LOST (it was ejected or replaced while a workload
    ran) or WORKLOAD (that failed).
    """

    kind: str
    candidate: str
    workload: str
    round: int
    reason: str
    hint: str | None = None


@dataclass
class Results:
    """What has been measured: by workload and candidate, measurements by round; round 0 warms up, and is not in it."""

    measured: dict[tuple[str, str], dict[int, Measurement]] = field(default_factory=lambda: defaultdict(dict))
    failures: list[Failure] = field(default_factory=list)
    interrupted: int | None = None

    @property
    def exit_status(self) -> int:
        """As the command's help has it: 128+N after signal N, 9 if a scheduler was lost, 1 after another failure."""
        if self.interrupted is not None:
            return 128 + self.interrupted
        if any(failure.kind == LOST for failure in self.failures):
            return SchedulerLost.exit_status
        return int(bool(self.failures))

    def has_failed(self, candidate: str) -> bool:
        """Whether a candidate is left out."""
        return candidate not in (EEVDF, AGAIN) and any(failure.candidate == candidate for failure in self.failures)

    def is_dropped(self, workload: str) -> bool:
        """Whether a workload is left out, since it failed under EEVDF."""
        return any(f.workload == workload and f.candidate in (EEVDF, AGAIN) for f in self.failures)

    def lacks(self, number: int, workload: Workload, candidate: Candidate) -> bool:
        """Whether a run is still to be made: neither was it, nor is it left out."""
        if number in self.measured[workload.text, candidate.name]:
            return False
        return not (self.has_failed(candidate.name) or self.is_dropped(workload.text))


class Observer:
    """Is told what happens; the methods do nothing here."""

    def starts(self, number: int, workload: Workload, candidate: Candidate, left_s: float | None) -> None:
        """A run starts, in round ``number``; all runs take about ``left_s`` seconds more, None if that is unknown."""

    def measured(self, number: int, workload: Workload, candidate: Candidate, measurement: Measurement) -> None:
        """A run has ended."""

    def failed(self, failure: Failure) -> None:
        """A candidate or a workload is left out."""


def measure(plan: Plan, observer: Observer, earlier: Results | None = None) -> Results:
    """Measure what of ``plan`` is not in ``earlier``; returns both.

    Termination signals and SIGCHLD must be blocked, and end it with what it has so far.
    """
    results, clock = earlier or Results(), _Clock(plan)
    try:
        for workload in plan.workloads:
            # The first run fills caches. It also fails if the workload cannot run at all.
            if any(results.lacks(number, workload, one) for number, _, order in plan.order() for one in order):
                _one(plan, 0, workload, plan.candidates[0], results, observer, clock)
        for number, workload, order in plan.order():
            for candidate in order:
                if results.lacks(number, workload, candidate):
                    _one(plan, number, workload, candidate, results, observer, clock)
    except Interrupted as end:
        results.interrupted = end.number
    return results


def _one(
    plan: Plan,
    number: int,
    workload: Workload,
    candidate: Candidate,
    results: Results,
    observer: Observer,
    clock: _Clock,
) -> None:
    interruption()
    observer.starts(number, workload, candidate, clock.left_s(results))
    kind = START
    began = time.monotonic()
    try:
        with candidate.attached(plan.cpus) as scheduler:
            interruption()
            if candidate.command is not None:
                time.sleep(_SETTLE_S)
            kind = WORKLOAD
            try:
                measurement = run(workload, scheduler, plan.cpus, clock.limit_s(workload))
            except GhostError:
                scheduler.check()  # a scheduler that is gone is the reason of whatever failed
                raise
            kind = STOP
    except GhostError as error:
        interruption()
        kind = LOST if isinstance(error, SchedulerLost) else kind
        failure = Failure(kind, candidate.name, workload.text, number, str(error), error.hint)
        results.failures.append(failure)
        observer.failed(failure)
        return
    clock.took(workload, candidate, time.monotonic() - began, measurement.seconds)
    if number:
        results.measured[workload.text, candidate.name][number] = measurement
    observer.measured(number, workload, candidate, measurement)


class _Clock:
    """How long runs have taken, and what is left."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._took: dict[tuple[str, str], float] = {}
        self._eevdf: dict[str, float] = {}

    def took(self, workload: Workload, candidate: Candidate, seconds: float, alone: float) -> None:
        """A run took ``seconds`` with the start of its scheduler, and ``alone`` without."""
        self._took[workload.text, candidate.name] = seconds
        if candidate.name in (EEVDF, AGAIN):
            self._eevdf[workload.text] = max(alone, self._eevdf.get(workload.text, 0))

    def limit_s(self, workload: Workload) -> float:
        """How long a run may take; the first run of a user's own command has no limit."""
        longest = self._eevdf.get(workload.text)
        if longest is not None:
            return longest * _SLOWER + _GRACE_S
        return math.inf if workload.seconds is None else workload.seconds * _FIRST_SLOWER + _GRACE_S

    def left_s(self, results: Results) -> float | None:
        """How long all runs that are left will take; None if that is unknown."""
        left = 0.0
        for workload in self._plan.workloads:
            for candidate in self._plan.candidates:
                if results.has_failed(candidate.name) or results.is_dropped(workload.text):
                    continue
                took = self._took.get((workload.text, candidate.name))
                if took is None and (took := self._took.get((workload.text, EEVDF), workload.seconds)) is None:
                    return None
                left += took * (self._plan.rounds - len(results.measured[workload.text, candidate.name]))
        return left
