# SPDX-License-Identifier: Apache-2.0
"""The benchmark's parts on policies: all side by side, and an agent's cost by number of tasks and CPUs."""

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
from .candidates import EEVDF
from .comparison import BIG_RING, Candidate, Work, compare, decisions
from .measure import Row, summary
from .sleeper_pool import SleeperPool

_TASKS = (10, 1_000, 10_000)
_CPUS = (2, 4, 8)
#: The least number of decisions that are timed.
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
#: Modules with logic of a policy besides its own file; edf and shinjuku share theirs.
_PARTS = {"edf": (central, priority_queue), "shinjuku": (central, priority_queue), "cfs": (fair,)}


def policies(runs: int) -> list[Row]:
    """perf bench and wake-to-run latencies under every policy but chaos; then the agents' work for each decision."""
    under: dict[str, Candidate] = {EEVDF: None} | {
        name: policy.parse() for name, policy in POLICIES.items() if name != "chaos"
    }
    figures: dict[str, list[float]] = {}
    for _ in range(runs):
        for policy in _agent_policies():
            for name, value in decisions(policy).items():
                figures.setdefault(f"{policy.name}, fast path off: {name}", []).append(value)
    rows = compare(under, runs)
    return [*rows, *_delegation(rows), *(summary(name, values, "") for name, values in figures.items())]


def _delegation(rows: list[Row]) -> list[Row]:
    """The cost of decisions by agents: cfs against cfs_bpf, the same policy in BPF; ratios of the medians."""
    medians = {row["what"]: row["median"] for row in rows}
    whats = [what.removesuffix(", cfs") for what in medians if what.endswith(", cfs")]
    return [
        {"what": f"{what}, cfs against cfs_bpf", "ratio": medians[f"{what}, cfs"] / medians[f"{what}, cfs_bpf"]}
        for what in whats
    ]


def scaling(runs: int) -> list[Row]:
    """An agent's CPU time per decision, by the number of tasks that wake at once, and of the enclave's CPUs."""
    everything = list(Topology.from_sysfs().all_cpus)
    few, most = _TASKS[0], min(_CPUS[-1], len(everything))
    sizes = [(tasks, most) for tasks in _TASKS] + [(_TASKS[1], cpus) for cpus in _CPUS if cpus < most]
    rows = []
    for policy in _agent_policies():
        costs: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
        for _ in range(runs):
            for tasks, cpus in sizes:
                cost = _cost(policy, tasks, CpuSet(everything[:cpus]))
                print(f"  {policy.name}: {tasks:,} tasks on {cpus} CPUs: {cost:.0f} us", file=sys.stderr, flush=True)
                costs[tasks, cpus].append(cost)
        rows += [
            summary(f"{policy.name}: a decision, {tasks:,} tasks on {cpus} CPUs", cost, "us", costs[few, most])
            for (tasks, cpus), cost in costs.items()
        ]
    return rows


def sizes(runs: int) -> list[Row]:
    """Lines of each policy, including comments: its file, its other modules, and ghOSt's policy; ``runs`` is unused."""
    rows = []
    for name, policy in POLICIES.items():
        own, parts = _lines(_file(policy)), sum(_lines(Path(part.__file__ or "")) for part in _PARTS.get(name, ()))
        ghost = _GHOST_LINES.get(name)
        ratio = (own + parts) / ghost if ghost else None
        rows.append({"what": name, "lines": own, "and parts": own + parts, "ghOSt's": ghost, "ratio": ratio})
    return rows


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _agent_policies() -> Iterator[AgentPolicySpec]:
    return (policy for policy in POLICIES.values() if isinstance(policy, AgentPolicySpec))


def _cost(policy: AgentPolicySpec, tasks: int, cpus: CpuSet) -> float:
    """The agents' CPU time per decision, in microseconds, while ``tasks`` wake at once, again and again."""
    # A turn with the messages of thousands of tasks may take seconds.
    options = policy.parse({"fastpath": "off", "agent-timeout": "10s"}).replace(**BIG_RING)
    with SleeperPool(tasks, cpus) as pool, Enclaves.temporary(options, cpus) as enclave:
        enclave.add_process(pool.pid)
        _wake_all(pool)  # from now on the agents know every task
        before = Work.of(enclave)
        while (did := Work.of(enclave) - before).committed < _DECISIONS:
            _wake_all(pool)
    return did.cpu_ns / did.committed / 1e3


def _wake_all(pool: SleeperPool) -> None:
    pool.wake()
    pool.all_passed()


def _file(policy: Policy) -> Path:
    return Path(inspect.getfile(policy.agent)) if isinstance(policy, AgentPolicySpec) else policy.source
