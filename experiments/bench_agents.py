# SPDX-License-Identifier: Apache-2.0
"""The benchmark's parts on agents: the cost of commits and messages, policies in Python, and upgrades."""

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
from .candidates import EEVDF
from .comparison import BIG_RING, Candidate, compare, decisions
from .measure import Row, in_child, perf, summary
from .sleeper_pool import SleeperPool, Spinner
from .wakelat import WakeLatency

#: The CPU of the measured agent; the enclave has the others.
_HOME = 0
_NULL = f"taskset -c {_HOME} perf bench syscall basic -l 500000"
_NULL_CALLS = 500_000
_BACKLOGS = (10, 1_000, 10_000)
#: Transactions per commit, whether they are a group, and how often each is timed.
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
        """Does nothing."""

    def dequeue(self, task: Task) -> None:
        """Does nothing."""

    def schedule(self) -> Iterable[Transaction]:
        return ()


class _KeepBusy(_Empty):
    """Runs only the task ``busy`` (tid, CPU); the benchmark commits all other transactions itself."""

    name = "keep_busy"
    busy = 0, 0

    def schedule(self) -> Iterator[Transaction]:
        tid, cpu = self.busy
        for task in self.agent.tasks.values() if cpu in self.agent.idle_cpus() else ():
            if task.tid == tid and task.state == WAITING:
                yield Transaction(task, cpu, 0, HEAD)


def transactions(runs: int) -> list[Row]:
    """The cost of a commit from Python in null syscalls, by size of the batch and number of waiting tasks."""
    null: dict[int, list[float]] = {backlog: [] for backlog in _BACKLOGS}
    python: list[float] = []
    costs: dict[tuple[int, str], list[float]] = {}
    states: Counter[str] = Counter()
    for _ in range(runs):
        for backlog in _BACKLOGS:
            result = commit_costs(backlog)
            null[backlog].append(result["null"])
            states.update(result["states"])
            for batch, cost in result["ns"].items():
                costs.setdefault((backlog, batch), []).append(cost)
        python.append(result["python"])
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


def commit_costs(backlog: int) -> dict[str, Any]:
    """The cost of commits while ``backlog`` tasks wait, all times in nanoseconds.

    ``ns`` is the median time per transaction by kind of batch, ``states`` how many transactions had which result,
    ``null`` and ``python`` the time of a null syscall from C and from Python.
    """
    options = spec_of(_KeepBusy).parse({"fastpath": "off", "agent-timeout": "10s"})
    with Enclaves.temporary(options, _others(), start_agent=False) as enclave:
        result: dict[str, Any] = in_child(partial(_commit_costs, enclave, options, backlog))
    return result


def _commit_costs(enclave: Enclave, options: PolicyOptions[AgentPolicySpec], backlog: int) -> dict[str, Any]:
    """Median nanoseconds per transaction by kind of batch, while ``backlog`` tasks wait, and the transactions' states.

    The tasks move from the common queue to that of a busy CPU, so that none runs, and back, unmeasured, by groups that
    fail. The same few tasks are used each time: otherwise cache misses on the waiting tasks would be measured, not
    their number. The null syscall is timed on the same CPU under the same load.
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
    """Nanoseconds per transaction; afterwards the committed tasks are back in the common queue."""
    batch = [task for task in random.sample(tasks, size) if task.state == WAITING]
    transactions = [Transaction(task, cpu) for task in batch]
    began = time.perf_counter_ns()
    results = agent.commit(transactions, group=group)
    took = time.perf_counter_ns() - began
    states.update(state.name for state in results)
    for group_tasks in (batch[::2], batch[1::2]):
        agent.commit([*(Transaction(task, cpu - 1) for task in group_tasks), Transaction(None, -1)], group=True)
    agent.turn()
    return took / max(1, len(batch))


def message_rates() -> tuple[float, float]:
    """Messages per second that are read from a ring; and that are read and told to a policy which ignores them."""
    options = spec_of(_Empty).parse({"agent-timeout": "10s"}).replace(**BIG_RING)
    with Enclaves.temporary(options, _others(), start_agent=False) as enclave:
        read, told = (in_child(partial(_drain_rate, enclave, options, through)) for through in (False, True))
    return read, told


def messages(runs: int) -> list[Row]:
    """Rates of messages read and decisions made, and the agent's CPU time for each."""
    read: list[float] = []
    handled: list[float] = []
    figures: dict[str, list[float]] = {}
    for _ in range(runs):
        for rates, rate in zip((read, handled), message_rates(), strict=True):
            rates.append(rate)
        for name, value in decisions(FIFO_CENTRALIZED).items():
            figures.setdefault(name, []).append(value)
    return [
        summary("messages read from a ring", read, "/s"),
        summary("messages read and told to an empty policy", handled, "/s", read),
        *(summary(f"fifo_centralized, fast path off: {name}", values, "") for name, values in figures.items()),
    ]


def _drain_rate(enclave: Enclave, options: PolicyOptions[AgentPolicySpec], through_policy: bool) -> float:
    """Messages per second, for the messages of a whole workload that are read at once afterwards."""
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
    """perf bench and wake-to-run latencies under policies in BPF and in Python, against EEVDF, in turn."""
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
    """The longest time without a switch to a task of a busy enclave, also at hand-overs; the agent's memory."""
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
    """Upgrade as ``ghostbpf run --enclave`` does."""
    enclave.set_policy(agent_process.options, agent_process)


def _memory() -> dict[str, float]:
    """Memory in MB of an agent that knows _SLEEPERS tasks."""
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
        status = Path(f"/proc/{enclave.agent_process.pid}/status").read_text(encoding="utf-8")
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
    """How many messages the agent has read; raises GhostError if messages were lost."""
    if (agent := enclave.agent) is None or agent.lost:
        raise GhostError("the agent ended, or lost messages", hint="run it again")
    return agent.messages
