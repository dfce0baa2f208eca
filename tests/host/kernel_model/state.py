# SPDX-License-Identifier: Apache-2.0
"""The state of the core and of the kernel around it: tasks, dispatch queues, CPUs, memory, locks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ghostbpf.schedulers.core import constant, ffi

from .fixes import Fixes
from .memory import PlainRecords, Records, Ring

ENCLAVE = 1
WORDS = 48
CGROUP_WEIGHT_ONE = constant("CGROUP_WEIGHT_ONE")
BLOCKED, WAITING, ON_CPU = (constant(f"TASK_{name}") for name in ("BLOCKED", "WAITING", "ON_CPU"))

Steps = Iterator[None]


class Queue:
    """A dispatch queue; ``seq`` counts insertions, as in struct scx_dispatch_q."""

    def __init__(self, name: str) -> None:
        self.name, self.seq = name, 0
        self.tasks: list[Task] = []

    def __repr__(self) -> str:
        return self.name

    def insert(self, task: Task, head: bool = False) -> None:
        assert task.queue is None, f"{task} is on {task.queue}, and inserted into {self}"
        self.seq += 1
        task.queue, task.place = self, self.seq
        self.tasks.insert(0 if head else len(self.tasks), task)

    def remove(self, task: Task) -> None:
        self.tasks.remove(task)
        task.queue = None


@dataclass
class AgentTask:
    """struct agent_task."""

    gtid: int = 0
    runtime_ns: int = 0
    word: int = 0
    seq: int = 0
    load_channel: int = 0
    channel: int = 0
    told_state: int = BLOCKED
    yielded: bool = False
    latched: int = 0


@dataclass(eq=False)
class Task:
    """A task; ``locked`` while an op holds the lock of its runqueue, ``runnable`` while it waits or runs."""

    tid: int
    tgid: int
    allowed: int
    cpu: int
    weight: int = 100
    cgroup: tuple[int, int] = (0, CGROUP_WEIGHT_ONE)  # as in struct task_cgroup
    enabled: bool = True
    exiting: bool = False
    gone: bool = False
    runnable: bool = False
    locked: bool = False
    queue: Queue | None = None
    place: int = 0
    runs: int = 0
    agent: AgentTask = field(default_factory=AgentTask)

    def __repr__(self) -> str:
        return f"<task {self.tid}>"


class Cpu:
    """The state of a CPU that user space does not see."""

    def __init__(self, number: int) -> None:
        self.current: Task | None = None
        self.local = Queue(f"local {number}")
        self.own = Queue(f"CPU {number}")
        self.switching = False
        self.kicked = False
        self.preempted = False
        self.running_since = 0


class State:
    """The core with enclave 1 of ``cpus`` CPUs; ``point`` is called at the end of each step of an agent."""

    def __init__(self, cpus: int, fixes: Fixes, point: Callable[[], None], first_cpu: int = 0) -> None:
        self.fixes, self.point = fixes, point
        self.numbers = range(first_cpu, first_cpu + cpus)
        end = first_cpu + cpus
        self.now_ns = 1_000_000
        self.channels = Records("struct channel", 1 + end, point)
        self.cpu_records = Records("struct cpu", end + 1, point)  # the last one is another enclave's
        self.enclaves = Records("struct enclave", 2, point)
        self.status_words = PlainRecords("struct status_word", WORDS, point)
        self.allowed_rest = PlainRecords("struct allowed_rest", WORDS, point) if end > 64 else None
        self.task_cgroups = PlainRecords("struct task_cgroup", WORDS, point)
        self.txns = PlainRecords("struct txn", (1 + end) * constant("TXNS"), point)
        self.core = ffi().new("struct core *")
        self.rings: dict[int, Ring] = {}
        self.sleepers: dict[int, Callable[[], None]] = {}  # by channel: wakes the agent
        self.readers_now: set[object] = set()  # programs of agents that hold the RCU read lock
        self.known: dict[int, int] = {}
        self.cpus = {number: Cpu(number) for number in self.numbers}
        self.pending, self.fallback = Queue("pending"), Queue("fallback")
        self.tasks: list[Task] = []
        self.by_tid: dict[int, Task] = {}
        self.free_words: list[int] = []
        self.words_ever = 0
        self.gtids = 0
        self.told: dict[int, list[int]] = {}  # the sequence numbers of all messages, lost or not, by gtid
        for number in self.numbers:
            self.set_online(number, True)
            self.cpu_records.raw[number].enclave = ENCLAVE
        self.enclaves.raw[ENCLAVE].state = constant("ENCLAVE_ACTIVE")

    # CPUs

    def set_online(self, cpu: int, online: bool) -> None:
        bit = 1 << cpu % 64
        self.core.online[cpu // 64] = self.core.online[cpu // 64] & ~bit | (bit if online else 0)

    def is_online(self, cpu: int) -> bool:
        return bool(self.core.online[cpu // 64] >> cpu % 64 & 1)

    def is_usable(self, task: Task, cpu: int) -> bool:
        return cpu in self.cpus and self.is_online(cpu) and bool(task.allowed >> cpu & 1)

    def home_cpu(self, task: Task) -> int | None:
        if self.is_usable(task, task.cpu):
            return task.cpu
        return next((cpu for cpu in self.numbers if self.is_usable(task, cpu)), None)

    def idles(self, cpu: int) -> bool:
        state = self.cpus[cpu]
        return state.current is None and not state.switching and not state.kicked and not self.is_taken(cpu)

    def is_taken(self, cpu: int) -> bool:
        return bool(self.cpu_records.raw[cpu].preempted_by_class)

    def is_lost(self, cpu: int) -> bool:
        return not self.is_online(cpu) or (self.is_taken(cpu) and not self.channels.raw[1 + cpu].tid)

    def report_stuck(self) -> None:
        self.enclaves.raw[ENCLAVE].stuck = 1

    def note_latches(self) -> None:
        self.enclaves.raw[ENCLAVE].latches = 1

    def kick(self, cpu: int, preempt: bool = False) -> None:
        """An idle CPU dispatches once more; a busy one is interrupted only by ``preempt``."""
        if self.cpus[cpu].current is None:
            self.cpus[cpu].kicked = True
        elif preempt:
            self.cpus[cpu].preempted = True

    def kick_any_idle(self, task: Task | None = None) -> bool:
        for cpu in self.numbers:
            if self.is_online(cpu) and self.idles(cpu) and (task is None or self.is_usable(task, cpu)):
                self.kick(cpu)
                return True
        return False

    def kick_cpus(self) -> None:
        for cpu in self.numbers:
            if self.is_online(cpu):
                self.kick(cpu)

    # Locks

    def lock(self, task: Task) -> Steps:
        while task.locked:
            yield
        task.locked = True

    def wait_for_rcu(self) -> Steps:
        """Return when each program that runs now has ended."""
        readers, ops = set(self.readers_now), self.wait_for_ops()
        while readers & self.readers_now or next(ops, self) is None:
            yield

    def wait_for_ops(self) -> Steps:
        """Return when each op that runs now has ended: its task is locked as long."""
        locked = [task for task in self.tasks if task.locked]
        while locked := [task for task in locked if task.locked]:
            yield

    # State, for tests

    def waiting(self) -> Iterable[Task]:
        """The tasks that wait for a CPU."""
        running = {cpu.current for cpu in self.cpus.values()}
        return [task for task in self.tasks if task.runnable and task not in running]
