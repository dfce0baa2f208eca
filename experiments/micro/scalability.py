# SPDX-License-Identifier: Apache-2.0
"""ghOSt's global_scalability: how often threads that yield are scheduled, by number of CPUs and of threads.

A plan is a list of independent cells: a scheduler, a number of CPUs for tasks, and a number of threads on each. One
agent decides for all CPUs; where it cannot keep up, the rate levels off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...schedulers.cpuset import CpuSet
from ...schedulers.topology import Topology
from ..bench.noise import Watch, is_noisy, tree_seconds
from ..bench.plan import Candidate
from ..bench.running import Interrupted, interruption
from ..candidates import Attached
from ..journal import Row
from ..results import CellResults
from ..rocksdb.running import Application
from ..rocksdb.sweep import attempt
from ..rocksdb.sweeps import tuned
from .programs import MICRO

SWEEP = "global-scalability"
#: The name of the fair class, which is measured without an enclave.
NONE = "none"
#: The slices of the original, by policy.
_SLICES = {"shinjuku": "50us", "sol": "inf"}
#: About how long a decision of an agent takes on a usual machine, a switch of the fair class, and a start.
_DECISION_S, _SWITCH_S, _START_S = 5e-6, 1e-6, 2.0


@dataclass(frozen=True)
class Layout:
    """Which CPUs are used: ``global_cpu`` is the agent's, and tasks get the first of ``order``."""

    global_cpu: int
    order: Sequence[int]

    def tasks(self, count: int) -> CpuSet:
        """The CPUs of tasks, if they get ``count``."""
        return CpuSet(self.order[:count])

    def enclave(self, count: int) -> CpuSet:
        """The CPUs of the enclave: those of tasks, and the agent's."""
        return CpuSet({self.global_cpu, *self.tasks(count)})


def layout(topology: Topology, global_cpu: int, *, skip_cpu0: bool, pack_smt: bool) -> Layout:
    """All CPUs but the agent's and, with ``skip_cpu0``, CPU 0.

    They fill a NUMA node before the next: with ``pack_smt`` core by core, without it one thread of each core first.
    """

    def rank(cpu: int) -> tuple[int, ...]:
        one = topology.cpu(cpu)
        within = (one.core, one.smt_idx) if pack_smt else (one.smt_idx, one.core)
        return (one.numa_node, *within)

    left_out = {global_cpu} | ({0} if skip_cpu0 else set())
    return Layout(global_cpu, sorted(set(topology.all_cpus) - left_out, key=rank))


@dataclass(frozen=True)
class Cell:
    """One measurement: ``candidate``, by name, with so many CPUs for tasks and threads on each."""

    candidate: str
    task_cpus: int
    threads_per_cpu: int

    @property
    def threads(self) -> int:
        """All threads."""
        return self.task_cpus * self.threads_per_cpu

    @property
    def key(self) -> tuple[str, int, int]:
        """What identifies it in a file."""
        return self.candidate, self.threads_per_cpu, self.task_cpus


@dataclass(frozen=True)
class Plan:
    """What is measured: ``cells`` in their order; all threads of a cell together yield ``total_loops`` times."""

    candidates: Mapping[str, Candidate]
    cells: Sequence[Cell]
    layout: Layout
    total_loops: int
    scale: float

    def loops(self, cell: Cell) -> int:
        """How often each thread yields."""
        return self.total_loops // cell.threads

    def seconds(self, cell: Cell) -> float:
        """About how long a cell takes."""
        each = _SWITCH_S if self.candidates[cell.candidate].policy is None else _DECISION_S
        return (_START_S + each * self.total_loops) * self.scale

    def as_json(self) -> Row:
        """What a later run must share to resume this one."""
        return {
            "sweep": SWEEP,
            "cpus": str(self.layout.enclave(max(cell.task_cpus for cell in self.cells))),
            "candidates": {name: candidate.describe() for name, candidate in self.candidates.items()},
            "options": {
                "global_cpu": self.layout.global_cpu,
                "order": list(self.layout.order),
                "total_loops": self.total_loops,
            },
            "plan": [list(cell.key) for cell in self.cells],
        }


def candidate(text: str, global_cpu: int) -> Candidate:
    """The scheduler of ``text``: NONE, or a policy whose agent spins on ``global_cpu`` and decides everything.

    Raises ValueError, and GhostError for a policy that is none.
    """
    if text == NONE:
        return Candidate(NONE)
    wanted = {"agent-cpu": str(global_cpu), "spin": "yes", "fastpath": "off"}
    if (slice_ := _SLICES.get(text.partition(":")[0])) is not None:
        wanted["slice"] = slice_
    return tuned(text, wanted)


class Results(CellResults[tuple[str, int, int]]):
    """The run, its cells by candidate, threads on a CPU and CPUs, and failures by candidate."""

    SAME = ("sweep", "kernel", "cpu_model", "candidates", "options", "plan")

    @staticmethod
    def key(row: Row) -> tuple[str, int, int]:
        return row["candidate"], row["threads_per_cpu"], row["task_cpus"]

    @staticmethod
    def check_cell(row: Row) -> None:
        row["threads_per_cpu"] / 1, row["task_cpus"] / 1, row["ns"] / 1, row["scheds"] / 1


def rate(row: Row) -> float:
    """How often threads were scheduled in a second."""
    return row["scheds"] / row["ns"] * 1e9 if row["ns"] else 0.0


class Observer:
    """Is told what happens; the methods do nothing here."""

    def starts(self, number: int, cell: Cell, left_s: float) -> None:
        """Cell ``number``, from 1, starts; all that are left take about ``left_s`` seconds."""

    def has(self, cell: Cell, row: Row) -> None:
        """A cell has been measured, now or earlier."""

    def failed(self, row: Row) -> None:
        """A candidate is left out."""


def measure(plan: Plan, results: Results, observer: Observer) -> int | None:
    """Measure the cells that ``results`` lacks; returns the number of the signal that ended it, or None.

    Termination signals must be blocked. Raises GhostError if results cannot be kept.
    """
    took = expected = 0.0
    try:
        for number, cell in enumerate(plan.cells, 1):
            if (row := results.cells.get(cell.key)) is not None:
                observer.has(cell, row)
            if row is not None or cell.candidate in results.failures:
                continue
            interruption()
            left = sum(plan.seconds(one) for one in plan.cells[number - 1 :] if one.key not in results.cells)
            observer.starts(number, cell, left * (took / expected if expected else 1))
            began = time.monotonic()
            row = _measure(plan, cell)
            results.add(row)
            if row["type"] == "failure":
                observer.failed(row)
                continue
            took, expected = took + time.monotonic() - began, expected + plan.seconds(cell)
            observer.has(cell, row)
    except Interrupted as end:
        return end.number
    return None


def _measure(plan: Plan, cell: Cell) -> Row:
    named = {"candidate": cell.candidate, "task_cpus": cell.task_cpus, "threads_per_cpu": cell.threads_per_cpu}
    loops = plan.loops(cell)
    if not loops:
        return {"type": "cell", **named, "loops": 0, "ns": 0, "scheds": 0, "others": 0.0, "noisy": False}
    cpus = plan.layout.tasks(cell.task_cpus)
    words = [str(MICRO.path()), "yield", "--threads", str(cell.threads), "--loops", str(loops)]

    def measured(scheduler: Attached) -> Row:
        found, others, noisy = run(words, scheduler, cpus, 20 * plan.seconds(cell))
        return {"loops": loops, **found, "others": others, "noisy": noisy}

    return {**named, **attempt(plan.candidates[cell.candidate], plan.layout.enclave(cell.task_cpus), measured)}


def run(words: Sequence[str], scheduler: Attached, cpus: CpuSet, seconds: float) -> tuple[Any, float, bool]:
    """Run a program of micro.c under ``scheduler``: its result, how many CPUs others used, and whether that is noise.

    Raises SchedulerLost if the scheduler was not in charge throughout, Interrupted, and GhostError.
    """
    with Application(words[1], words, scheduler, cpus) as application:
        application.prepare()
        earlier = tree_seconds(application.pid)
        watch = Watch(lambda: tree_seconds(scheduler.pid) if scheduler.pid is not None else 0.0)
        began = time.monotonic()
        application.go()
        found = application.result(seconds)
        others = watch.others(application.cpu_seconds - earlier)
        scheduler.check()
    return found, round(others, 3), is_noisy(others, time.monotonic() - began)


def cells(names: Sequence[str], counts: Sequence[int], threads_per_cpu: Sequence[int]) -> Iterator[Cell]:
    """The cells of a plan, in the order of the original: by number of CPUs for each scheduler."""
    for name in names:
        for threads in threads_per_cpu:
            for count in counts:
                yield Cell(name, count, threads)
