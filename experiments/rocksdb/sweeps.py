# SPDX-License-Identifier: Apache-2.0
"""The sweeps of ghOSt's experiments: a plan is a list of independent cells, each a scheduler and a throughput."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...schedulers.cpuset import CpuSet
from ...schedulers.policy import find
from ...schedulers.registry import POLICIES, from_file, is_file
from ..bench.plan import Candidate
from ..candidates import EEVDF as FAIR_CLASS
from ..naming import name_and_options
from .options import EEVDF, GHOST, MS, US, AntagonistOptions, Placement, RocksdbOptions, with_defaults

#: About how long a scheduler and its applications take to start and to end.
_START_S = {EEVDF: 1.0, GHOST: 3.0}
#: Requests that wait at the end may take this part of the time to end.
_DRAIN = 0.1
_THOUSAND = 1000


def _steps(*ranges: tuple[int, int, int]) -> tuple[int, ...]:
    """Throughputs from (first, last, step), in thousands."""
    return tuple(n * _THOUSAND for first, last, step in ranges for n in range(first, last + 1, step))


@dataclass(frozen=True)
class Sweep:
    """One of the original's scripts: service times, workers, and the throughputs by scheduler.

    ``slice`` is that of the policy, 0 for endless. With an antagonist, EEVDF gets nice values, and a policy QoS.
    """

    name: str
    summary: str
    range_query_ratio: float
    get_exponential_mean: int
    ghost_workers: int
    slice_ns: int
    has_antagonist: bool
    throughputs: Mapping[str, tuple[int, ...]]


_MIXED = {EEVDF: _steps((10, 40, 10), (50, 80, 1)), GHOST: _steps((10, 130, 10), (140, 150, 1))}

SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "centralized",
            "Gets of 10 us alone: the cost of one queue for all CPUs.",
            *(0.0, US, 11, 0, False),
            {EEVDF: _steps((10, 440, 10), (450, 480, 1)), GHOST: _steps((10, 420, 10), (430, 460, 1))},
        ),
        Sweep(
            "shinjuku",
            "0.5 % range queries of 5 ms among gets of 10 us: preemption.",
            *(0.005, 0, 200, 30 * US, False),
            _MIXED,
        ),
        Sweep(
            "shenango",
            "Gets alone, beside an antagonist: CPU time that is left.",
            *(0.0, US, 11, 0, True),
            # The original's 10k to 590k for EEVDF is a slip of the pen for 10k to 60k.
            {EEVDF: _steps((10, 60, 10), (70, 120, 1)), GHOST: _steps((10, 380, 10), (390, 450, 1))},
        ),
        Sweep(
            "shinjuku-shenango",
            "Range queries among gets, beside an antagonist.",
            *(0.005, 0, 200, 30 * US, True),
            _MIXED,
        ),
    )
}


@dataclass(frozen=True)
class Cell:
    """One measurement: ``candidate``, by name, at ``throughput`` requests/s before the time scale."""

    candidate: str
    throughput: int


@dataclass(frozen=True)
class Plan:
    """What a sweep measures: ``cells``, in their order, on ``cpus``."""

    sweep: Sweep
    candidates: Mapping[str, Candidate]
    cells: Sequence[Cell]
    cpus: CpuSet
    base: RocksdbOptions
    wait: str | None
    generator: str | None

    @property
    def placement(self) -> Placement:
        """The CPUs of threads."""
        return Placement.of(self.cpus)

    def scheduler(self, candidate: str) -> str:
        """EEVDF or GHOST."""
        return EEVDF if self.candidates[candidate].policy is None else GHOST

    def rocksdb(self, cell: Cell) -> RocksdbOptions:
        """The options of RocksDB in a cell."""
        scheduler = self.scheduler(cell.candidate)
        options = replace(
            self.base,
            scheduler=scheduler,
            throughput=cell.throughput,
            range_query_ratio=self.sweep.range_query_ratio,
            get_exponential_mean=self.sweep.get_exponential_mean,
            num_workers=self.sweep.ghost_workers if scheduler == GHOST else len(self.placement.workers),
            nice=-20 if scheduler == EEVDF and self.sweep.has_antagonist else 0,
        )
        # Beside an antagonist, workers of EEVDF sleep while they are idle, as in the original.
        wait = "futex" if scheduler == EEVDF and self.sweep.has_antagonist and self.wait is None else self.wait
        return with_defaults(options, self.cpus, wait, self.generator)

    def antagonist(self, cell: Cell) -> AntagonistOptions | None:
        """The options of the antagonist in a cell; None without one."""
        if not self.sweep.has_antagonist:
            return None
        scheduler = self.scheduler(cell.candidate)
        return AntagonistOptions(
            discard_duration=self.base.discard_duration,
            experiment_duration=self.base.experiment_duration,
            nice=19 if scheduler == EEVDF else 0,
            num_threads=len(self.placement.enclave),
            scheduler=scheduler,
            time_scale=self.base.time_scale,
        )

    def seconds(self, cell: Cell) -> float:
        """About how long a cell takes."""
        duration = self.base.experiment_duration * (1 + _DRAIN) + self.base.discard_duration
        return duration / 1e9 + _START_S[self.scheduler(cell.candidate)] * max(1, self.base.time_scale / 5)

    def as_json(self) -> dict[str, Any]:
        """What a later run must share to resume this one."""
        first = {cell.candidate: cell for cell in reversed(self.cells)}
        return {
            "sweep": self.sweep.name,
            "cpus": str(self.cpus),
            "time_scale": self.base.time_scale,
            "candidates": {name: self.candidates[name].describe() for name in first},
            "options": {name: self._options(cell) for name, cell in first.items()},
            "plan": [[cell.candidate, cell.throughput] for cell in self.cells],
        }

    def _options(self, cell: Cell) -> dict[str, Any]:
        antagonist = self.antagonist(cell)
        rocksdb = {name: value for name, value in self.rocksdb(cell).as_json().items() if name != "throughput"}
        return {"rocksdb": rocksdb, "antagonist": antagonist.as_json() if antagonist is not None else None}


def candidates(
    schedulers: Sequence[str], policies: Sequence[str], sweep: Sweep, scale: float, cpus: CpuSet
) -> list[Candidate]:
    """EEVDF and policies, as ``schedulers`` names them; raises ValueError, and GhostError for a policy that is none."""
    found = [Candidate(FAIR_CLASS)] if EEVDF in schedulers else []
    if GHOST in schedulers:
        found += [_policy(text, sweep, scale, cpus) for text in policies or ("shinjuku",)]
    return found


def _policy(text: str, sweep: Sweep, scale: float, cpus: CpuSet) -> Candidate:
    slice_ = f"{round(sweep.slice_ns * scale)}ns" if sweep.slice_ns else "inf"
    return tuned(text, {"slice": slice_, "spin": "yes", "agent-cpu": str(min(Placement.of(cpus).enclave))})


def tuned(text: str, wanted: Mapping[str, str]) -> Candidate:
    """The policy of ``text`` with the options ``wanted``, where it has them and ``text`` gives no others."""
    name, options = name_and_options(text)
    policy = from_file(name) if is_file(name) else find(name, POLICIES)
    for option in policy.options:
        if (value := wanted.get(option.name)) is None or option.name in options:
            continue
        try:
            option.parse(value)
        except ValueError:
            continue  # a policy without endless slices keeps its default
        options[option.name] = value
    return Candidate(text, policy=policy.parse(options))


def cells(plan_candidates: Sequence[Candidate], sweep: Sweep, throughputs: Sequence[int]) -> Iterator[Cell]:
    """The cells of a plan: all ``throughputs``, or those of the sweep, for each candidate."""
    for candidate in plan_candidates:
        own = sweep.throughputs[EEVDF if candidate.policy is None else GHOST]
        for throughput in throughputs or own:
            yield Cell(candidate.name, throughput)


def parse_throughputs(text: str) -> list[int]:
    """Throughputs from "10k-40k/10k,50k"; raises ValueError."""
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+k?)(?:-(\d+k?)/(\d+k?))?", piece.strip())
        if match is None:
            raise ValueError(f'"{piece}" is not a throughput such as 20k, or 10k-40k/10k')
        first, last, step = (_number(text) if text else None for text in match.groups())
        assert first is not None
        if last is None or step is None:
            found.append(first)
        elif not step or last < first:
            raise ValueError(f'"{piece}": write first-last/step')
        else:
            found += range(first, last + 1, step)
    if not all(found) or len(found) > 10_000:
        raise ValueError(f'"{text}": throughputs are above 0, and at most 10,000 of them')
    return list(dict.fromkeys(found))


def _number(text: str) -> int:
    return int(text.removesuffix("k")) * (_THOUSAND if text.endswith("k") else 1)


#: The shortest measurement that has percentiles worth a name.
LEAST_NS = 100 * MS
