# SPDX-License-Identifier: Apache-2.0
"""Agents for the guest tier: a FIFO, and an agent whose turns and decisions the test controls."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ghostbpf.schedulers.agents import Agents
from ghostbpf.schedulers.agents.task import HEAD, WAITING
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.userspace import (
    Agent,
    AgentPolicy,
    AgentProcess,
    MessageType,
    RunQueue,
    Task,
    Transaction,
    TxnState,
)
from workload import DEADLINE, Child, is_off_cpu, state, until

MakeAgent = Callable[..., Agent]
MakeAgentProcess = Callable[..., tuple[Enclave, AgentProcess]]

#: Options of an agent, for tests that a single decision of the core would fail, as after a pause of an emulated CPU.
PATIENT = {"agent_timeout": "10s"}


class Fifo(AgentPolicy):
    """Commits the task that has waited longest to each idle CPU."""

    name = "fifo"

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue = RunQueue()

    def enqueue(self, task: Task) -> None:
        self.queue.add(task)

    def dequeue(self, task: Task) -> None:
        self.queue.discard(task)

    def schedule(self) -> Iterator[Transaction]:
        for cpu in self.agent.idle_cpus():
            if task := self.queue.pop(cpu):
                yield Transaction(task, cpu)


class Manual(Fifo):
    """Logs every message. Decides only if ``auto`` is set, except that tasks in ``kept`` get their CPU back."""

    name = "manual"
    fastpath = False

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, **options)
        self.auto = True
        self.kept: dict[Task, int] = {}
        self.log: list[tuple[str, Task]] = []
        self.cpu_log: list[tuple[str, int]] = []
        self.refused: list[tuple[Transaction, TxnState]] = []
        for kind in MessageType:
            self._log(
                f"on_{kind.name.lower()}".replace("task_affinity", "affinity").replace("task_priority", "priority")
            )

    def _log(self, name: str) -> None:
        then = getattr(self, name)

        def callback(what: Any) -> None:
            if isinstance(what, Task):
                self.log.append((name.removeprefix("on_").removeprefix("task_"), what))
            else:
                self.cpu_log.append((name.removeprefix("on_cpu_"), what))
            then(what)

        setattr(self, name, callback)

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.refused.append((transaction, state))
        super().on_refused(transaction, state)

    def schedule(self) -> Iterator[Transaction]:
        for task, cpu in self.kept.items():
            if task.state == WAITING and self.agent.tasks.get(task.gtid) is task:
                self.queue.discard(task)
                yield Transaction(task, cpu, flags=HEAD)
        if self.auto:
            yield from super().schedule()


def drive(agent: Agent, condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE) -> Any:
    """Run turns of ``agent`` until ``condition()`` is true; returns its value."""

    deadline = time.monotonic() + seconds
    while True:
        is_due = agent.turn()
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what or condition}"
        if not is_due:
            time.sleep(0.002)


def manual(agent: Agent) -> Manual:
    """The policy of ``agent``, typed; it decides nothing from here on."""
    assert isinstance(agent.policy, Manual)
    agent.policy.auto = False
    return agent.policy


def asleep(agent: Agent, child: Child) -> Child:
    """Drive until ``child`` sleeps and the agent has read every message of it."""

    def known() -> bool:
        """Whether ``child`` sleeps and has no unread message."""
        # A task that was preempted on its way to sleep waits for a commit of this test: check that first.
        if _waits(agent, child) or not is_off_cpu(child.pid):
            return False
        words = [(task, agent.status_words[task.word]) for task in agent.tasks.values() if task.tid == child.pid]
        return all((task.gtid, task.seq) == (word.gtid, word.seq) for task, word in words)

    drive(agent, known, f"{child} sleeps")
    return child


def task_of(agent: Agent, child: Child) -> Task:
    """Drive without decisions until ``child`` waits for a CPU; returns the agent's task."""
    manual(agent)
    return drive(agent, lambda: _waits(agent, child), f"{child} waits")


def _waits(agent: Agent, child: Child) -> Task | None:
    return next((t for t in agent.tasks.values() if t.tid == child.pid and t.state == WAITING), None)


def loads(enclave: Enclave) -> list[int]:
    """The number of tasks that run or wait, by channel, as the core counts them."""
    agents = Agents.open(enclave.id)
    assert agents is not None
    return [int(channel.load) for channel in agents.channels]


def waiting(enclave: Enclave) -> int:
    """The number of tasks of ``enclave`` whose status word says that they wait for a CPU."""
    return sum(row["state"] == "waiting" for row in enclave.task_states())


@contextlib.contextmanager
def stopped(enclave: Enclave) -> Iterator[None]:
    """Stop the agent of ``enclave`` for the block, which must be shorter than its time-out."""
    agent = enclave.agent
    assert agent is not None
    os.kill(agent.tid, signal.SIGSTOP)
    try:
        until(lambda: state(agent.tid) == "T", "the agent is stopped")
        yield
    finally:
        os.kill(agent.tid, signal.SIGCONT)


def wake_all(enclave: Enclave, sleepers: Iterable[Child]) -> None:
    """Wake ``sleepers``, which are all tasks of ``enclave``, in this order; the agent reads of all in one turn.

    An agent with turns in between would commit the first ones as soon as a CPU is free.
    """
    with stopped(enclave):
        for number, sleeper in enumerate(sleepers, start=1):
            sleeper.wake()
            until(lambda number=number: waiting(enclave) == number, f"{sleeper} waits")


def children_of(pid: int) -> list[int]:
    """The child processes of ``pid``, which has one thread; for per-CPU agents, one for each CPU."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
