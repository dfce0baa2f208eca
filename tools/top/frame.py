# SPDX-License-Identifier: Apache-2.0
"""What two samples say: plain data, which the screen, ``--once`` and JSON show.

    frame = between(before, sample.read())
    [(cpu.cpu, cpu.comm, cpu.depth) for cpu in frame.cpus]

A rate is None until there are two samples of the same task or enclave.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ...loaders.errors import GhostError
from ...schedulers import queues
from ...schedulers.agents import AgentState
from ...schedulers.core import Task
from ...schedulers.cpuset import CpuSet
from ...schedulers.enclave_view import Counters
from ...schedulers.errors import Ejected
from ...schedulers.snapshot import EnclaveState
from .sample import CpuTime, Sample

#: How many values a sparkline can show.
HISTORY = 120


@dataclass(frozen=True)
class EnclaveRow:
    """An enclave. ``busy`` is the number of CPUs that its tasks used; ``switches`` and ``preempted`` are per second.

    ``queued`` of the ``waiting`` tasks are on no CPU's own queue: on the enclave's, or on none, as tasks are that wait
    for an agent's decision. ``latency_ns`` is how long a task waited, on average, before it got a CPU.
    ``longest_wait_ns`` is how long the task has been waiting that waits longest now.
    """

    id: int
    policy: str
    cpus: CpuSet
    tree: int
    tasks: int
    running: int
    waiting: int
    queued: int
    longest_wait_ns: int
    busy: float | None
    switches: float | None
    preempted: float | None
    latency_ns: float | None
    departures: int
    fell_back: bool
    agent: AgentState | None


@dataclass(frozen=True)
class CpuRow:
    """A CPU; ``enclave`` is 0 if none owns it.

    ``state`` is "running" (task ``tid`` of an enclave), "other" (another class ran most of the time), "idle" or
    "offline". ``busy`` is the share of time in which it ran anything, ``ext`` that of enclaves' tasks. ``depth`` counts
    the tasks that wait on its own queues.
    """

    cpu: int
    enclave: int
    state: str
    tid: int
    comm: str
    busy: float | None
    ext: float | None
    depth: int


@dataclass(frozen=True)
class TaskRow:
    """A task in the ext class.

    ``cpu_share`` and ``wait_share`` are shares of the time between the samples; ``latency_ns`` is how long it waited,
    on average, before it got a CPU; ``runs`` is per second. The other numbers are totals since the task was made, and
    ``waiting_ns`` is how long it has been waiting now, on ``queue``.
    """

    tid: int
    pid: int
    comm: str
    enclave: int
    cpu: int
    state: str
    queue: int
    cpu_share: float | None
    wait_share: float | None
    latency_ns: float | None
    runs: float | None
    waiting_ns: int
    waited_ns: int
    runtime_ns: int
    migrations: int
    elsewhere: bool

    @property
    def queue_name(self) -> str:
        """What its queue is; empty if it is on none."""
        return queues.name(self.queue, self.cpu) if self.queue else ""


@dataclass(frozen=True)
class Frame:
    """``seconds`` is the time between the samples; 0 for a single sample."""

    at: float
    seconds: float
    state: str
    full: bool
    error: GhostError | None
    ejection: Ejected | None
    enclaves: tuple[EnclaveRow, ...] = ()
    cpus: tuple[CpuRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)

    def enclave(self, id: int) -> EnclaveRow | None:
        """Enclave ``id``, or None if there is none."""
        return next((row for row in self.enclaves if row.id == id), None)

    def task(self, tid: int) -> TaskRow | None:
        """Task ``tid``, or None if it is not in the ext class."""
        return next((row for row in self.tasks if row.tid == tid), None)


def between(before: Sample | None, now: Sample) -> Frame:
    """The frame of ``now``, with the rates since ``before``."""
    state = now.state
    seconds = now.at - before.at if before is not None else 0.0
    old_tasks = {task.tid: task for task in before.state.tasks} if before is not None else {}
    old_enclaves = {one.id: one for one in before.state.enclaves} if before is not None else {}
    # An enclave, or a task, with the number of an earlier one has begun anew.
    changes = {task.tid: (old_tasks[task.tid], task) for task in state.tasks if _goes_on(old_tasks.get(task.tid), task)}
    known = {
        one.id: old_enclaves[one.id]
        for one in state.enclaves
        if one.id in old_enclaves and old_enclaves[one.id].created_ns == one.created_ns
    }
    return Frame(
        at=now.at,
        seconds=seconds,
        state=state.state,
        full=state.full,
        error=now.error,
        ejection=state.ejection,
        enclaves=tuple(_enclave_row(one, known.get(one.id), state.tasks, changes, seconds) for one in state.enclaves),
        cpus=_cpu_rows(before, now, known, seconds),
        tasks=tuple(_task_row(task, changes.get(task.tid), seconds) for task in state.tasks),
        events=state.events,
    )


_Changes = Mapping[int, tuple[Task, Task]]


def _goes_on(before: Task | None, now: Task) -> bool:
    return before is not None and before.pid == now.pid and before.activity.runs <= now.activity.runs


def _enclave_row(
    now: EnclaveState, before: EnclaveState | None, all_tasks: Iterable[Task], changes: _Changes, seconds: float
) -> EnclaveRow:
    tasks = [task for task in all_tasks if task.enclave == now.id]
    waiting = [task for task in tasks if task.activity.state == "waiting"]

    def rate(count: Callable[[Counters], int]) -> float | None:
        return (count(now.counters) - count(before.counters)) / seconds if before is not None else None

    busy = rate(lambda counters: counters.runtime_ns)
    return EnclaveRow(
        id=now.id,
        policy=now.policy,
        cpus=now.cpus,
        tree=now.tree,
        tasks=now.tasks,
        running=sum(task.on_cpu for task in tasks),
        waiting=len(waiting),
        queued=sum(_own_queue(task) is None for task in waiting),
        longest_wait_ns=max((task.activity.waiting_ns for task in waiting), default=0),
        busy=None if busy is None else busy / 1e9,
        switches=rate(lambda counters: counters.switches),
        preempted=rate(lambda counters: counters.preempted),
        latency_ns=_latency_ns(changes[task.tid] for task in tasks if task.tid in changes),
        departures=now.departures,
        fell_back=now.fell_back,
        agent=now.agent,
    )


def _latency_ns(changes: Iterable[tuple[Task, Task]]) -> float | None:
    """How long tasks waited for a CPU, on average, each time that they got one; None if none did."""
    runs = waited = 0
    for before, now in changes:
        runs += now.activity.runs - before.activity.runs
        waited += now.activity.waited_ns - before.activity.waited_ns
    return waited / runs if runs else None


def _own_queue(task: Task) -> int | None:
    """The CPU on whose own queue, or on whose local queue of the kernel, a task waits."""
    queue = task.activity.queue
    if not queue:
        return None
    return task.cpu if queues.is_local(queue) else queues.owner(queue)


def _cpu_rows(
    before: Sample | None, now: Sample, known: Mapping[int, EnclaveState], seconds: float
) -> tuple[CpuRow, ...]:
    running = {task.cpu: task for task in now.state.tasks if task.on_cpu}
    depths = Counter(_own_queue(task) for task in now.state.tasks if task.activity.state == "waiting")
    used = _used_ns(now.state.enclaves, known)
    rows = []
    for cpu in sorted({*now.times, *now.state.cpus}):
        owner = now.state.cpus.get(cpu)
        busy = _busy(before.times.get(cpu) if before is not None else None, now.times.get(cpu))
        task = running.get(cpu)
        if cpu not in now.times:
            state = "offline"
        elif task is not None:
            state = "running"
        else:
            state = "other" if (owner is not None and owner.taken) or (busy or 0.0) > 0.5 else "idle"
        rows.append(
            CpuRow(
                cpu=cpu,
                enclave=owner.enclave if owner is not None else 0,
                state=state,
                tid=task.tid if task is not None else 0,
                comm=task.comm if task is not None else "",
                busy=busy,
                ext=min(used[cpu] / 1e9 / seconds, 1.0) if before is not None else None,
                depth=depths[cpu],
            )
        )
    return tuple(rows)


def _used_ns(enclaves: Iterable[EnclaveState], known: Mapping[int, EnclaveState]) -> Counter[int]:
    """The run time of enclaves' tasks since the other sample, by CPU."""
    used: Counter[int] = Counter()
    for one in enclaves:
        if one.id in known:
            used.update({cpu: counters.runtime_ns for cpu, counters in one.per_cpu.items()})
            used.subtract({cpu: counters.runtime_ns for cpu, counters in known[one.id].per_cpu.items()})
    return used


def _busy(before: CpuTime | None, now: CpuTime | None) -> float | None:
    if before is None or now is None or now.total <= before.total:
        return None
    return max(now.busy - before.busy, 0) / (now.total - before.total)


def _task_row(task: Task, change: tuple[Task, Task] | None, seconds: float) -> TaskRow:
    now = task.activity
    ran = waited = runs = None
    if change is not None:
        before, _ = change
        ran = (task.runtime_ns - before.runtime_ns) / 1e9 / seconds
        waited_ns = now.waited_ns + now.waiting_ns - before.activity.waited_ns - before.activity.waiting_ns
        waited = max(waited_ns, 0) / 1e9 / seconds
        runs = (now.runs - before.activity.runs) / seconds
    return TaskRow(
        tid=task.tid,
        pid=task.pid,
        comm=task.comm,
        enclave=task.enclave,
        cpu=task.cpu,
        state=now.state,
        queue=now.queue,
        cpu_share=ran,
        wait_share=waited,
        latency_ns=None if change is None else _latency_ns([change]),
        runs=runs,
        waiting_ns=now.waiting_ns,
        waited_ns=now.waited_ns,
        runtime_ns=task.runtime_ns,
        migrations=now.migrations,
        elsewhere=task.elsewhere,
    )


class History:
    """The last values of each enclave, and of one task that is followed, for sparklines."""

    def __init__(self) -> None:
        self.latency: dict[int, deque[float]] = {}
        self.followed: int | None = None
        self.cpu_share: deque[float] = deque(maxlen=HISTORY)
        self.wait_share: deque[float] = deque(maxlen=HISTORY)

    def follow(self, tid: int | None) -> None:
        """Follow task ``tid`` from now on, or none."""
        self.followed = tid
        self.cpu_share.clear()
        self.wait_share.clear()

    def add(self, frame: Frame) -> None:
        """Take the values of a new frame; a value that is not known counts as 0."""
        rows = {row.id: row for row in frame.enclaves}
        self.latency = {id: self.latency.get(id, deque(maxlen=HISTORY)) for id in rows}
        for id, row in rows.items():
            self.latency[id].append(row.latency_ns or 0.0)
        if self.followed is not None and (task := frame.task(self.followed)) is not None:
            self.cpu_share.append(task.cpu_share or 0.0)
            self.wait_share.append(task.wait_share or 0.0)
