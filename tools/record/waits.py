# SPDX-License-Identifier: Apache-2.0
"""Why a task waited: what ran instead on the CPUs it was allowed, and who decided."""

from __future__ import annotations

from dataclasses import dataclass

from ...schedulers import queues
from .events import MADE, WOKEN, YIELDED, is_real_time, message_name
from .timeline import Run, Task, Timeline, Wait

#: What can decide.
KERNEL, POLICY, AGENT = "kernel", "policy", "agent"


@dataclass(frozen=True)
class Culprit:
    """A task that ran on an allowed CPU during a wait, and for how long, summed over CPUs."""

    task: Task
    ns: int


@dataclass(frozen=True)
class Explanation:
    """Of one wait; ``idle_ns`` is how long a CPU that the task was allowed idled meanwhile, though it was runnable."""

    wait: Wait
    allowed: int
    culprits: tuple[Culprit, ...]
    idle_ns: int
    decided_by: str
    why: str
    where: str
    decision: str


def explain(timeline: Timeline, task: Task) -> list[Explanation]:
    """Each wait of a task, in the order of time."""
    return [_explained(timeline, wait) for wait in task.waits]


def _explained(timeline: Timeline, wait: Wait) -> Explanation:
    allowed = timeline.allowed(wait)
    ran: dict[int, int] = {}
    idle: list[Run] = []
    for cpu in timeline.runs:
        if allowed >> cpu & 1:
            for run in timeline.during(cpu, wait.since, wait.until):
                if run.tid:
                    ran[run.tid] = ran.get(run.tid, 0) + _overlap(run, wait)
                else:
                    idle.append(run)
    longest = sorted(ran.items(), key=lambda item: (-item[1], item[0]))
    culprits = tuple(Culprit(timeline.tasks[tid], ns) for tid, ns in longest if ns > 0)
    decided_by, decision = _decision(timeline, wait)
    return Explanation(
        wait,
        allowed,
        culprits,
        _union_ns(idle, wait),
        decided_by,
        _why(timeline, wait),
        queues.name(wait.queued.queue) if wait.queued.queue else "",
        decision,
    )


def _overlap(run: Run, wait: Wait) -> int:
    return min(run.until, wait.until) - max(run.since, wait.since)


def _union_ns(runs: list[Run], wait: Wait) -> int:
    """How long at least one of ``runs`` overlapped the wait."""
    total, reached = 0, wait.since
    for run in sorted(runs, key=lambda run: run.since):
        since, until = max(run.since, reached), min(run.until, wait.until)
        if until > since:
            total += until - since
            reached = until
    return total


def _why(timeline: Timeline, wait: Wait) -> str:
    """Why it began to wait, in words."""
    other = timeline.tasks.get(wait.queued.other)
    match wait.queued.why:
        case w if w == WOKEN:
            return f"woken by {other.name}" if other else "woken by an interrupt or a timer"
        case w if w == MADE:
            return f"made by {other.name}" if other else "made"
        case w if w == YIELDED:
            return "it yielded" + (f" to {other.name}" if other else "")
    by = f" by {other.name}" if other else ""
    if (transaction := timeline.preemptor(wait)) is not None:
        return f"preempted{by}: agent {_agent(timeline, transaction.agent)} asked for it"
    if other and any(is_real_time(run.prio) for run in _next_run(timeline, wait)):
        return f"preempted{by}, of a higher class"
    return f"preempted{by}: its slice was used up, or its CPU was wanted"


def _next_run(timeline: Timeline, wait: Wait) -> list[Run]:
    """What came on the CPU that the task lost."""
    return [run for run in timeline.during(wait.queued.cpu, wait.since, wait.since + 1) if run.since == wait.since]


def _decision(timeline: Timeline, wait: Wait) -> tuple[str, str]:
    """What decided when and where it ran, and that in words."""
    q = wait.queued
    where = f"CPU {wait.cpu}" if wait.cpu is not None else "no CPU yet"
    if not q.ext:
        return KERNEL, f"the kernel, as the task is not in the ext class: {where}"
    if (transaction := wait.decision) is not None:
        after, before = (ns / 1000 for ns in (transaction.at - wait.since, wait.until - transaction.at))
        message = timeline.messages.get((transaction.gtid, transaction.seq))
        reason = f"on message {message_name(message.kind)} number {transaction.seq}" if message else "by itself"
        return AGENT, (
            f"agent {_agent(timeline, transaction.agent)}, {reason}: CPU {transaction.cpu}, "
            f"{after:.0f} us after the wait began, {before:.0f} us before it ended"
        )
    enclave = timeline.enclave_at(q.enclave, wait.since) if q.enclave else None
    if enclave is None:
        return POLICY, f"the sched_ext scheduler: {where}"
    return POLICY, f"policy {enclave.policy or '?'} of enclave {q.enclave}, in BPF: {where}"


def _agent(timeline: Timeline, tid: int) -> str:
    task = timeline.tasks.get(tid)
    return task.name if task else str(tid)
