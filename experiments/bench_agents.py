# SPDX-License-Identifier: Apache-2.0
"""The benchmark's parts on agents: what commits and messages cost, policies in Python, and upgrades."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..loaders.errors import GhostError
from ..schedulers.agents import AgentPolicySpec
from ..schedulers.agents.task import HEAD, WAITING
from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.policy import PolicyOptions
from ..schedulers.registry import POLICIES
from ..schedulers.topology import Topology
from ..schedulers.userspace import (
    FIFO_CENTRALIZED,
    Agent,
    AgentPolicy,
    AgentProcess,
    Task,
    Transaction,
    TxnState,
    spec_of,
)
from .comparison import BIG_RING, EEVDF, Candidate, compare, decisions
from .measure import Row, in_child, perf, summary
from .sleeper_pool import SleeperPool, Spinner
from .wakelat import WakeLatency

#: The CPU of the agent that is measured; the enclave has the others.
_HOME = 0
_NULL = f"taskset -c {_HOME} perf bench syscall basic -l 500000"
_NULL_CALLS = 500_000
_BACKLOGS = (10, 1_000, 10_000)
#: How many transactions are committed at once, whether as a group, and how often that is timed.
_BATCHES = {
    "batch of 1": (1, False, 100),
    "batch of 10": (10, False, 40),
    "group of 10": (10, True, 40),
    "batch of 64": (64, False, 20),
}
_WARM_UP = 5
_FEW_MESSAGES = "perf bench sched messaging -g 2 -l 100"
_ENDLESS = "perf bench sched messaging -g 4 -l 100000000"
_SLEEPERS = 10_000
_HAND_OVERS = 3
_SETTLE_S = 0.3


class _Empty(AgentPolicy):
    """Decides nothing."""

    name = "empty"

    def enqueue(self, task: Task) -> None:
        """Nobody asks it to remember."""

    def dequeue(self, task: Task) -> None:
        """There is nothing to forget."""

    def schedule(self) -> Iterable[Transaction]:
        return ()


class _KeepBusy(_Empty):
    """Lets nothing run but the task ``busy``, by tid, on its CPU; what else is committed is the benchmark's affair."""

    name = "keep_busy"
    busy = 0, 0

    def schedule(self) -> Iterator[Transaction]:
        tid, cpu = self.busy
        for task in self.agent.tasks.values() if cpu in self.agent.idle_cpus() else ():
            if task.tid == tid and task.state == WAITING:
                yield Transaction(task, cpu, 0, HEAD)


def transactions(runs: int) -> list[Row]:
    """A commit from Python in multiples of a null syscall, by size of the batch and number of tasks that wait."""
    null: dict[int, list[float]] = {backlog: [] for backlog in _BACKLOGS}
    python: list[float] = []
    costs: dict[tuple[int, str], list[float]] = {}
    states: Counter[str] = Counter()
    options = spec_of(_KeepBusy).parse({"fastpath": "off", "agent-timeout": "10s"})
    for _ in range(runs):
        for backlog in _BACKLOGS:
            with Enclaves.temporary(options, _others(), start_agent=False) as enclave:
                found = in_child(partial(_commit_costs, enclave, options, backlog))
            null[backlog].append(found["null"])
            states.update(found["states"])
            for batch, cost in found["ns"].items():
                costs.setdefault((backlog, batch), []).append(cost)
        python.append(found["python"])
    few = _BACKLOGS[0]
    rows = [summary("null syscall", null[few], "ns"), summary("os.getppid() in Python", python, "ns", null[backlog])]
    rows += [
        summary(f"commit, {backlog:,} wait, {batch}: each", cost, "ns", null[backlog])
        for (backlog, batch), cost in costs.items()
    ]
    rows += [
        summary(f"{batch}, {backlog:,} wait against {few}", cost, "ns", costs[few, batch])
        for (backlog, batch), cost in costs.items()
        if backlog != few and (few, batch) in costs
    ]
    complete, total = states.pop(TxnState.COMPLETE.name), states.total()
    rows.append({"what": f"complete of {complete + total:,} commits", "median": complete, "unit": ""})
    return rows + [{"what": f"... {state}", "median": count, "unit": ""} for state, count in states.items()]


def _python_syscall() -> float:
    """Nanoseconds of ``os.getppid()`` in a loop."""
    count, call = 100_000, os.getppid
    began = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - began) / count


def _commit_costs(enclave: Enclave, options: PolicyOptions[AgentPolicySpec], backlog: int) -> dict[str, Any]:
    """Median nanoseconds of a transaction by kind of its batch, while ``backlog`` tasks wait; and each one's state.

    The tasks go from the queue where all wait to that of a CPU that is busy, so that none runs; and back, unmeasured,
    by groups that fail. They are the same few each time, or the memory of those that wait would count, and not just
    their number. The null syscall is timed in the same process's place, beside the same load.
    """
    os.sched_setaffinity(0, {_HOME})
    *_, target = enclave.cpus
    agent = Agent(enclave, options.policy, options.values)
    policy: Any = agent.policy
    states: Counter[str] = Counter()
    costs = {}
    with SleeperPool(backlog, enclave.cpus) as pool, Spinner(enclave, target) as spinner:
        enclave.add_process(pool.pid)
        gc.disable()
        policy.busy = spinner.pid, target
        agent.take_over()
        try:
            null, python = perf(_NULL) / _NULL_CALLS * 1e9, _python_syscall()
            pool.wake()
            waiting = _all_waiting(agent, pool.pid, backlog)
            for batch, (size, group, times) in _BATCHES.items():
                if size <= backlog:
                    few = random.sample(waiting, max(size, _BACKLOGS[0]))
                    taken = [_timed_batch(agent, few, size, group, target, states) for _ in range(_WARM_UP + times)]
                    costs[batch] = statistics.median(taken[_WARM_UP:])
        finally:
            agent.leave()
    return {"null": null, "python": python, "ns": costs, "states": states}


def _all_waiting(agent: Agent, pid: int, count: int) -> list[Task]:
    deadline = time.monotonic() + 60
    while len(tasks := [t for t in agent.tasks.values() if t.tgid == pid and t.state == WAITING]) < count:
        if time.monotonic() > deadline:
            raise GhostError(f"only {len(tasks)} of {count} tasks wait")
        agent.turn()
    return tasks


def _timed_batch(agent: Agent, tasks: list[Task], size: int, group: bool, cpu: int, states: Counter[str]) -> float:
    """Nanoseconds per transaction; whoever was committed waits in the common queue again afterwards."""
    batch = [task for task in random.sample(tasks, size) if task.state == WAITING]
    wanted = [Transaction(task, cpu) for task in batch]
    began = time.perf_counter_ns()
    found = agent.commit(wanted, group=group)
    took = time.perf_counter_ns() - began
    states.update(state.name for state in found)
    for half in (batch[::2], batch[1::2]):
        agent.commit([*(Transaction(task, cpu - 1) for task in half), Transaction(None, -1)], group=True)
    agent.turn()
    return took / max(1, len(batch))


def messages(runs: int) -> list[Row]:
    """How fast messages are read, and decisions made; and the agent's CPU time for each."""
    options = spec_of(_Empty).parse({"agent-timeout": "10s"}).replace(**BIG_RING)
    read: list[float] = []
    told: list[float] = []
    figures: dict[str, list[float]] = {}
    for _ in range(runs):
        with Enclaves.temporary(options, _others(), start_agent=False) as enclave:
            for rates, through_policy in ((read, False), (told, True)):
                rates.append(in_child(partial(_drain_rate, enclave, options, through_policy)))
        for name, value in decisions(FIFO_CENTRALIZED).items():
            figures.setdefault(name, []).append(value)
    return [
        summary("messages read from a ring", read, "/s"),
        summary("messages read and told to an empty policy", told, "/s", read),
        *(summary(f"fifo_centralized, fast path off: {name}", values, "") for name, values in figures.items()),
    ]


def _drain_rate(enclave: Enclave, options: PolicyOptions[AgentPolicySpec], through_policy: bool) -> float:
    """Messages per second: those of a whole workload, which nobody has read meanwhile."""
    os.sched_setaffinity(0, {_HOME})
    agent = Agent(enclave, options.policy, options.values)
    agent.take_over()
    agent.turn()
    before = _messages(enclave)
    perf(f"taskset -c {enclave.cpus} {_FEW_MESSAGES}", enclave.add)
    gc.disable()
    began = time.perf_counter()
    if through_policy:
        agent.turn()
        count = _messages(enclave) - before
    else:
        count = len(agent._channel.read())
    took = time.perf_counter() - began
    agent.leave()
    return count / took


def agents(runs: int) -> list[Row]:
    """perf bench, and wake-to-run latencies, under policies in BPF and in Python against EEVDF, in turn."""
    centralized = POLICIES["fifo_centralized"]
    under: dict[str, Candidate] = {
        EEVDF: None,
        "Biff": POLICIES["biff"].parse(),
        "fifo_centralized": centralized.parse(),
        "fifo_centralized, fast path off": centralized.parse({"fastpath": "off"}),
        "fifo_per_cpu": POLICIES["fifo_per_cpu"].parse(),
    }
    goals = {("messaging", "fifo_centralized"): 0.84, ("pipe", "fifo_centralized"): 1.0}
    goals |= {("messaging", "fifo_centralized, fast path off"): 0.88, ("pipe", "fifo_centralized, fast path off"): 1.9}
    return [{**row, "goal": goals.get(tuple(row["what"].split(", ", 1)))} for row in compare(under, runs)]


def agent_gaps(runs: int) -> list[Row]:
    """The longest time in which no task of a busy enclave came on a CPU, at hand-overs and not; the agent's memory."""
    gaps: dict[str, list[float]] = {"undisturbed": [], "upgrade": [], "SIGKILL": []}
    memory: dict[str, list[float]] = {}
    for _ in range(runs):
        with Enclaves.temporary(FIFO_CENTRALIZED) as enclave:
            _hand_over(enclave, gaps)
        for name, value in _memory().items():
            memory.setdefault(name, []).append(value)
    return [
        summary("longest gap, undisturbed", gaps["undisturbed"], "ms"),
        summary("longest gap, agent -> agent", gaps["upgrade"], "ms", gaps["undisturbed"]),
        summary("longest gap, agent killed", gaps["SIGKILL"], "ms", gaps["undisturbed"]),
        *(summary(f"agent, {_SLEEPERS:,} tasks have waited: {name}", values, "MB") for name, values in memory.items()),
    ]


def _hand_over(enclave: Enclave, gaps: dict[str, list[float]]) -> None:
    with WakeLatency() as latency, _endless_load(enclave, latency):

        def gap(event: Callable[..., object], *arguments: Any) -> float:
            latency.reset_gap()
            event(*arguments)
            time.sleep(_SETTLE_S)
            return latency.longest_gap / 1e6

        for _ in range(_HAND_OVERS):
            options = FIFO_CENTRALIZED.parse()
            with AgentProcess(options) as first, AgentProcess(options) as second:
                began = time.monotonic()
                gaps["upgrade"].append(gap(_upgrade, enclave, first))
                quiet = time.monotonic() - began - _SETTLE_S
                gaps["undisturbed"].append(gap(time.sleep, quiet))
                gaps["SIGKILL"].append(gap(os.kill, first.pid, signal.SIGKILL))
                _upgrade(enclave, second)


def _upgrade(enclave: Enclave, agent_process: AgentProcess) -> None:
    """As ``ghostbpf run --enclave`` does it."""
    enclave.set_policy(agent_process.options, agent_process)


def _memory() -> dict[str, float]:
    """MB of an agent that knows _SLEEPERS tasks."""
    cpus = Topology.from_sysfs().all_cpus
    with (
        SleeperPool(_SLEEPERS, cpus) as pool,
        Enclaves.temporary(FIFO_CENTRALIZED.parse({"fastpath": "off"})) as enclave,
    ):
        enclave.add_process(pool.pid)
        pool.wake()
        while sum(1 for row in enclave.task_states() if row["state"] == "blocked") < _SLEEPERS:
            time.sleep(0.05)
        assert enclave.agent_process is not None
        status = Path(f"/proc/{enclave.agent_process.pid}/status").read_text()
    return {name: int(status.split(f"{name}:")[1].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}


@contextlib.contextmanager
def _endless_load(enclave: Enclave, latency: WakeLatency) -> Iterator[None]:
    load = subprocess.Popen(
        ["sh", "-c", f"read go; exec {_ENDLESS} >/dev/null 2>&1"], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        enclave.add(load.pid)
        latency.mark(load.pid)
        assert load.stdin is not None
        load.stdin.close()
        time.sleep(_SETTLE_S)
        yield
    finally:
        os.killpg(load.pid, signal.SIGKILL)
        load.wait()


def _others() -> CpuSet:
    return Topology.from_sysfs().all_cpus - CpuSet([_HOME])


def _messages(enclave: Enclave) -> int:
    """How many its agent has read; raises GhostError where some were lost."""
    if (agent := enclave.agent) is None or agent.lost:
        raise GhostError("the agent ended, or lost messages", hint="run it again")
    return agent.messages
