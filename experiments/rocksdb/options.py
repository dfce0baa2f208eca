# SPDX-License-Identifier: Apache-2.0
"""The options of the RocksDB application and of the antagonist; times are in nanoseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from ...schedulers.cpuset import CpuSet

EEVDF, GHOST = "eevdf", "ghost"
SPIN, FUTEX, TABLE, SLEEP = "spin", "futex", "table", "sleep"
MS, US = 1_000_000, 1_000
#: Items in the table of hints: RocksDB's begin at 0, the antagonist's here.
_ANTAGONIST_ITEM = 3000
#: An application is saturated if the 99th percentile of its latencies is this long, times the time scale.
SATURATED_NS = MS


class _Options:
    def as_json(self) -> dict[str, Any]:
        """The options by name, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def option_lines(options: Mapping[str, Any]) -> list[str]:
    """Options as "name: value", in alphabetical order."""
    return [f"{name}: {value}" for name, value in sorted(options.items())]


@dataclass(frozen=True)
class RocksdbOptions(_Options):
    """The load, the service times and the workers of the RocksDB application, as ghOSt's experiments have them."""

    batch: int = 1
    discard_duration: int = 2_000 * MS
    entries: int = 1_000_000
    experiment_duration: int = 15_000 * MS
    generator: str = SPIN
    generator_slack: int = 0
    get_duration: int = 10 * US
    get_exponential_mean: int = 0
    nice: int = 0
    num_workers: int = 6
    print_distribution: bool = False
    qos: int = 2
    range_duration: int = 5_000 * US
    range_entries: int = 5_000
    range_query_ratio: float = 0.0
    rocksdb_db_path: str = ""
    scheduler: str = EEVDF
    seed: int = 2
    throughput: float = 20_000
    time_scale: float = 1.0
    wait_type: str = SPIN

    @property
    def rate(self) -> float:
        """The requests per second that are made: the throughput divided by the time scale."""
        return self.throughput / self.time_scale

    def words(self, placement: Placement, hints: str | None) -> list[str]:
        """The arguments of `rocksdb run`, with all times and gaps multiplied by the time scale."""
        values: dict[str, object] = {
            "throughput": f"{self.rate:.9g}",
            "range_query_ratio": self.range_query_ratio,
            "get_duration": round(self.get_duration * self.time_scale),
            "get_exponential_mean": round(self.get_exponential_mean * self.time_scale),
            "range_duration": round(self.range_duration * self.time_scale),
            "generator_slack": round(self.generator_slack * self.time_scale),
            "load_generator_cpu": placement.generator,
            "print_distribution": int(self.print_distribution),
        }
        same = ("entries", "range_entries", "num_workers", "batch", "generator", "seed", "nice", "qos")
        for name in (*same, "experiment_duration", "discard_duration"):
            values[name] = getattr(self, name)
        # A policy that reads no hints has no table.
        values["wait_type"] = FUTEX if self.wait_type == TABLE and hints is None else self.wait_type
        if self.scheduler == EEVDF:
            values["dispatcher_cpu"] = placement.dispatcher
            values["worker_cpus"] = ",".join(map(str, placement.workers))
        if hints is not None:
            values["hints"] = hints
        return ["run", self.rocksdb_db_path, *_arguments(values)]


@dataclass(frozen=True)
class AntagonistOptions(_Options):
    """Threads that each want ``work_share`` of a CPU."""

    discard_duration: int = 0
    experiment_duration: int = 15_000 * MS
    nice: int = 0
    num_threads: int = 8
    qos: int = 1
    scheduler: str = EEVDF
    time_scale: float = 1.0
    work_share: float = 1.0

    def words(self, cpus: Sequence[int], hints: str | None) -> list[str]:
        """The arguments of `antagonist run`; under EEVDF, its threads are pinned to ``cpus``."""
        values: dict[str, object] = {
            name: getattr(self, name)
            for name in ("work_share", "num_threads", "experiment_duration", "discard_duration", "nice", "qos")
        }
        values["period"] = round(100 * US * self.time_scale)
        values["first_item"] = _ANTAGONIST_ITEM
        if self.scheduler == EEVDF:
            values["cpus"] = ",".join(map(str, cpus))
        if hints is not None:
            values["hints"] = hints
        return ["run", *_arguments(values)]


def _arguments(values: dict[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Placement:
    """Which CPUs threads are pinned to: the load generator always, the others under EEVDF."""

    generator: int
    dispatcher: int
    workers: tuple[int, ...]
    enclave: CpuSet

    @classmethod
    def of(cls, cpus: CpuSet) -> Self:
        """As in the original: the first CPU is the generator's, the second the dispatcher's or the agent's.

        With two CPUs the generator and the dispatcher share one; a single CPU is everything's.
        """
        ordered = sorted(cpus)
        generator, rest = ordered[0], ordered[1:] or ordered
        dispatcher = rest[0] if len(rest) > 1 else generator
        return cls(generator, dispatcher, tuple(rest[1:] or rest), CpuSet(rest))


def with_defaults(options: RocksdbOptions, cpus: CpuSet, wait: str | None, generator: str | None) -> RocksdbOptions:
    """Threads spin as in the original where each has a CPU of its own, on a machine that is not emulated."""
    has_room = len(cpus) >= 4 and options.time_scale == 1
    if wait is None and options.scheduler == EEVDF:
        wait = SPIN if has_room and options.num_workers <= len(cpus) - 2 else FUTEX
    return replace(options, generator=generator or (SPIN if has_room else SLEEP), wait_type=wait or TABLE)


def is_saturated(p99_ns: float, time_scale: float) -> bool:
    """Whether an application with this 99th percentile of latencies is saturated."""
    return p99_ns >= SATURATED_NS * time_scale


def rounded(scale: float) -> float:
    """A time scale in two digits, at least 1; a machine half as fast as the reference needs none."""
    if scale < 2:
        return 1.0
    digits = math.floor(math.log10(scale)) - 1
    return float(round(scale, -digits))
