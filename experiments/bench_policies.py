# SPDX-License-Identifier: Apache-2.0
"""The benchmark's parts on policies: each beside all others, and how an agent's cost grows with tasks and CPUs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from ..schedulers.agents import AgentPolicySpec
from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclaves
from ..schedulers.policy import Policy
from ..schedulers.registry import POLICIES
from ..schedulers.topology import Topology
from ..schedulers.userspace import central, fair, priority_queue
from .comparison import BIG_RING, EEVDF, Candidate, Work, compare, decisions
from .measure import Row, summary
from .sleeper_pool import SleeperPool

_TASKS = (10, 1_000, 10_000)
_CPUS = (2, 4, 8)
#: Decisions that are timed, at least, whatever the number of tasks.
_DECISIONS = 2_000
#: Lines of ghOSt's policy of that name, its headers and its BPF part with it (google/ghost-userspace, 9ca0a1f).
_GHOST_LINES = {
    "biff": 840,
    "cfs_bpf": 1350,
    "cfs": 2060,
    "edf": 1500,
    "fifo_per_cpu": 720,
    "fifo_centralized": 770,
    "shinjuku": 1770,
    "sol": 1110,
}
#: Files that hold a policy's own logic besides its own; edf and shinjuku have theirs in common.
_PARTS = {"edf": (central, priority_queue), "shinjuku": (central, priority_queue), "cfs": (fair,)}


def policies(runs: int) -> list[Row]:
    """perf bench and wake-to-run latencies under every policy there is; then what the agents do for each decision."""
    under: dict[str, Candidate] = {EEVDF: None} | {name: policy.parse() for name, policy in POLICIES.items()}
    figures: dict[str, list[float]] = {}
    for _ in range(runs):
        for half in _halves():
            for name, value in decisions(half).items():
                figures.setdefault(f"{half.name}, fast path off: {name}", []).append(value)
    rows = compare(under, runs)
    return [*rows, *_delegation(rows), *(summary(name, values, "") for name, values in figures.items())]


def _delegation(rows: list[Row]) -> list[Row]:
    """What it costs that agents decide: cfs against cfs_bpf, which does the same in BPF; ratios of the medians."""
    medians = {row["what"]: row["median"] for row in rows}
    whats = [what.removesuffix(", cfs") for what in medians if what.endswith(", cfs")]
    return [
        {"what": f"{what}, cfs against cfs_bpf", "ratio": medians[f"{what}, cfs"] / medians[f"{what}, cfs_bpf"]}
        for what in whats
    ]


def scaling(runs: int) -> list[Row]:
    """An agent's CPU time for a decision, by the number of tasks that wake at once, and of the enclave's CPUs."""
    everything = list(Topology.from_sysfs().all_cpus)
    few, most = _TASKS[0], min(_CPUS[-1], len(everything))
    sizes = [(tasks, most) for tasks in _TASKS] + [(_TASKS[1], cpus) for cpus in _CPUS if cpus < most]
    rows = []
    for half in _halves():
        costs: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
        for _ in range(runs):
            for tasks, cpus in sizes:
                cost = _cost(half, tasks, CpuSet(everything[:cpus]))
                print(f"  {half.name}: {tasks:,} tasks on {cpus} CPUs: {cost:.0f} us", file=sys.stderr, flush=True)
                costs[tasks, cpus].append(cost)
        rows += [
            summary(f"{half.name}: a decision, {tasks:,} tasks on {cpus} CPUs", cost, "us", costs[few, most])
            for (tasks, cpus), cost in costs.items()
        ]
    return rows


def sizes(runs: int) -> list[Row]:
    """Lines of each policy, comments and all: its file, what else is its own logic, and ghOSt's; it takes no runs."""
    rows = []
    for name, policy in POLICIES.items():
        own, parts = _lines(_file(policy)), sum(_lines(Path(part.__file__ or "")) for part in _PARTS.get(name, ()))
        ghost = _GHOST_LINES.get(name)
        ratio = (own + parts) / ghost if ghost else None
        rows.append({"what": name, "lines": own, "and parts": own + parts, "ghOSt's": ghost, "ratio": ratio})
    return rows


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _halves() -> Iterator[AgentPolicySpec]:
    return (policy for policy in POLICIES.values() if isinstance(policy, AgentPolicySpec))


def _cost(half: AgentPolicySpec, tasks: int, cpus: CpuSet) -> float:
    """Microseconds of the agents' CPU time per decision, while ``tasks`` wake at once, and again when all have run."""
    # A turn with the messages of thousands of tasks may take seconds.
    options = half.parse({"fastpath": "off", "agent-timeout": "10s"}).replace(**BIG_RING)
    with SleeperPool(tasks, cpus) as pool, Enclaves.temporary(options, cpus) as enclave:
        enclave.add_process(pool.pid)
        _stampede(pool)  # from now on the agents know each of them
        before = Work.of(enclave)
        while (did := Work.of(enclave) - before).committed < _DECISIONS:
            _stampede(pool)
    return did.cpu_ns / did.committed / 1e3


def _stampede(pool: SleeperPool) -> None:
    pool.wake()
    pool.all_passed()


def _file(policy: Policy) -> Path:
    return Path(inspect.getfile(policy.agent)) if isinstance(policy, AgentPolicySpec) else policy.source
