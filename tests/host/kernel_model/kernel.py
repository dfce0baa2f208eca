# SPDX-License-Identifier: Apache-2.0
"""The core's part of one enclave with agents: tasks, CPUs, queues, messages, and the programs that agents call.

Everything that takes time is a generator: at each ``yield``, another CPU may do anything. Names and order are those of
the C code, so that a change there has one place here. The model leaves out slices, groups, spinning agents, and the
rescue of tasks that an agent forgets: such a task never runs here, while the core runs it after 5 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ghostbpf.schedulers.agents.task import MessageType, TxnState
from ghostbpf.schedulers.core import constant, ffi

from .memory import PlainRecords, Records, Ring

ENCLAVE = 1
WORDS = 48
BLOCKED, WAITING, ON_CPU = (constant(f"TASK_{name}") for name in ("BLOCKED", "WAITING", "ON_CPU"))
IDLE, WOKEN, BUSY = (constant(f"AGENT_{name}") for name in ("IDLE", "WOKEN", "BUSY"))
PREEMPT, HEAD, BOOSTED = constant("TXN_PREEMPT"), constant("TXN_HEAD"), constant("MSG_BOOSTED")

Steps = Iterator[None]


@dataclass(frozen=True)
class Fixes:
    """Which bugs of earlier versions are fixed; tests switch off one fix to see the model find the bug."""

    #: Both tries of a commit make the iterator before they check task and CPU: whatever changes a task takes it off its
    #: queue meanwhile, and an iterator moves no task that was inserted after the iterator was made.
    checks_each_try: bool = True
    #: A commit finds the queue that a task waits on by reading the task, and not what was noted of it.
    looks_for_queue: bool = True
    #: The core reads a CPU's own queue to learn whether a task waits there; cpu.latched only informs agents.
    asks_queue: bool = True
    #: If the pid of a task differs from that in its gtid, the task departs, and is new.
    follows_exec: bool = True
    #: post() reads the agent's state after its reserved place in the ring is visible.
    posts_in_order: bool = True
    #: A decision is pending until the agent has read the message that asks for it, not until it begins its next turn.
    counts_questions: bool = True
    #: The status word freed last is reused last, and tell() does not write to one that belongs to another task by now.
    words_stay: bool = True
    #: Tasks of the runqueue of a CPU that goes offline leave every queue, even that of another CPU.
    hotplug_empties_all: bool = True
    #: Registering the waiting tasks does not take a task for running because it is on no queue right now.
    stock_does_not_guess: bool = True
    #: An agent that takes over where none was asked waits for what the CPUs are about to queue, and takes stock then.
    waits_for_ops: bool = True


ALL_FIXES = Fixes()


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


class Kernel:
    """The core with enclave 1 of ``cpus`` CPUs; ``point`` is called at the end of each step of an agent."""

    def __init__(self, cpus: int, fixes: Fixes, point: Callable[[], None], first_cpu: int = 0) -> None:
        self.fixes, self.point = fixes, point
        self.numbers = range(first_cpu, first_cpu + cpus)
        end = first_cpu + cpus
        self.now_ns = 1_000_000
        self.channels = Records("struct channel", 1 + end, point)
        self.cpu_records = Records("struct cpu", end, point)
        self.enclaves = Records("struct enclave", 2, point)
        self.status_words = PlainRecords("struct status_word", WORDS, point)
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

    # Messages

    def is_timed_out(self, number: int) -> bool:
        ch = self.channels.raw[number]
        if not self.fixes.counts_questions:
            asked = ch.oldest_pending_ns > ch.heartbeat_ns and self.now_ns - ch.oldest_pending_ns > ch.timeout_ns
        else:
            asked = ch.asked != ch.answered and self.now_ns - max(ch.oldest_pending_ns, ch.heartbeat_ns) > ch.timeout_ns
        return bool(asked or (ch.state == BUSY and self.now_ns - ch.heartbeat_ns > ch.timeout_ns))

    def is_delegated(self, number: int) -> bool:
        ch = self.channels.raw[number]
        return bool(ch.tid) and not self.is_timed_out(number) and not ch.fastpath

    def channel_or_0(self, number: int) -> int:
        return number if self.channels.raw[number].tid else 0

    def is_cpu_delegated(self, cpu: int) -> bool:
        return self.is_delegated(0) and self.is_delegated(self.channel_or_0(1 + cpu))

    def asks(self, number: int, kind: int) -> bool:
        if number and not self.channels.raw[number].fastpath:
            return True
        return kind < MessageType.TASK_BLOCKED or kind > MessageType.TASK_DEPARTED

    def post(self, number: int, message: tuple[Any, ...]) -> Steps:
        ch, ring, kind = self.channels.raw[number], self.rings.get(number), message[6]
        if not ch.tid:
            return
        if not self.fixes.counts_questions and self.asks(number, kind) and ch.oldest_pending_ns <= ch.heartbeat_ns:
            ch.oldest_pending_ns = message[3]
        yield
        rests = ch.state == IDLE
        if not self.fixes.posts_in_order:
            yield
        place = ring.reserve() if ring is not None else None
        if place is None:
            ch.lost += 1
            ch.overflowed = 1
            return
        yield
        if self.fixes.counts_questions and self.asks(number, kind):
            if ch.asked == ch.answered:
                ch.oldest_pending_ns = message[3]
            ch.asked += 1
            yield
        if self.fixes.posts_in_order:
            rests = ch.state == IDLE
        wakes = False
        if self.asks(number, kind) and not ch.spins and rests and ch.state == IDLE:
            ch.state = WOKEN
            wakes = True
        yield
        place[0] = message
        if wakes:
            self.sleepers[number]()

    def tell(self, task: Task, number: int, kind: int, flags: int = 0) -> Steps:
        """Send a message to the task's agent; ``number`` is the word that the task had when the caller read it."""
        a, w = task.agent, self.status_words.raw[number]
        gtid = w.gtid
        if not gtid or (self.fixes.words_stay and gtid != a.gtid):
            return
        a.seq += 1
        w.seq = seq = a.seq
        channel = self.channel_or_0(a.channel)
        w.channel = channel
        self.count_load(task, w)
        w.cpu, w.boosted = task.cpu, flags & BOOSTED
        self.told.setdefault(gtid, []).append(seq)
        yield
        yield from self.post(
            channel,
            (0, gtid, a.runtime_ns, self.now_ns, w.allowed, seq, kind, flags, number, w.cpu, w.tgid, w.weight),
        )

    def tell_cpu(self, cpu: int, kind: int) -> Steps:
        yield from self.post(self.channel_or_0(1 + cpu), (0, 0, 0, self.now_ns, 0, 0, kind, 0, 0, cpu, 0, 0))

    def count_load(self, task: Task, w: Any) -> None:
        now = 0 if w.state == BLOCKED else 1 + w.channel
        before, task.agent.load_channel = task.agent.load_channel, now
        if before:
            self.channels.raw[before - 1].load -= 1
        if now:
            self.channels.raw[now - 1].load += 1

    def set_state(self, task: Task, state: int) -> None:
        if task.agent.word:
            w = self.status_words.raw[task.agent.word]
            w.state, w.since_ns = state, self.now_ns
            self.count_load(task, w)

    def take_word(self) -> int:
        if self.free_words:
            return self.free_words.pop(0 if self.fixes.words_stay else -1)
        if self.words_ever >= WORDS - 1:
            return 0
        self.words_ever += 1
        return self.words_ever

    def word_of(self, task: Task) -> int:
        a = task.agent
        if not a.word and (number := self.take_word()):
            w = self.status_words.raw[number]
            w.runtime_ns = w.seq = w.channel = w.boosted = 0
            w.state, w.since_ns = WAITING, self.now_ns
            w.allowed, w.weight, w.cpu, w.tgid = task.allowed & (1 << 64) - 1, task.weight, task.cpu, task.tgid
            self.gtids += 1
            w.gtid = a.gtid = self.gtids << 32 | task.tid
            a.word, a.runtime_ns, a.seq = number, 0, 0
        return a.word

    def tell_waits(self, task: Task, wakeup: bool, boosted: bool) -> Steps:
        a, number = task.agent, self.word_of(task)
        w = self.status_words.raw[number]
        kind = MessageType.TASK_PREEMPT
        if not w.seq:
            kind = MessageType.TASK_NEW
        elif wakeup:
            kind = MessageType.TASK_WAKEUP
        elif a.yielded:
            kind = MessageType.TASK_YIELD
        a.yielded, a.latched, a.told_state = False, 0, WAITING
        w.allowed = task.allowed & (1 << 64) - 1
        self.set_state(task, WAITING)
        yield
        yield from self.tell(task, number, kind, BOOSTED if boosted else 0)

    def note_waits(self, task: Task) -> None:
        task.agent.yielded, task.agent.latched = False, 0
        self.set_state(task, WAITING)

    def tell_blocked(self, task: Task) -> Steps:
        a = task.agent
        if not a.word:
            return
        self.set_state(task, BLOCKED)
        if a.told_state != BLOCKED:
            a.told_state = BLOCKED
            yield
            yield from self.tell(task, a.word, MessageType.TASK_BLOCKED)

    def tell_gone(self, task: Task, kind: int) -> Steps:
        a, number = task.agent, task.agent.word
        if not number:
            return
        self.set_state(task, BLOCKED)
        yield from self.tell(task, number, kind)
        a.word = a.gtid = a.channel = a.latched = 0
        a.told_state = BLOCKED
        yield
        w = self.status_words.raw[number]
        w.state, w.gtid = BLOCKED, 0
        self.free_words.append(number)

    # Ops; their callers hold the lock of the task's runqueue

    def lock(self, task: Task) -> Steps:
        while task.locked:
            yield
        task.locked = True

    def enqueue(self, task: Task, wakeup: bool = False, boosted: bool = False, last: bool = False) -> Steps:
        """agent_enqueue(), and core_enqueue() for a task that no CPU may run; inserts take effect when it returns."""
        task.runnable = True
        home = self.home_cpu(task)
        target, kicks = self.pending, list[int]()
        if home is None:
            self.fallback.insert(task)
            self.kick_any_idle()
            return
        if self.fixes.follows_exec and task.agent.gtid and task.agent.gtid & 0xFFFFFFFF != task.tid:
            yield from self.tell_gone(task, MessageType.TASK_DEPARTED)
        if task.exiting or (not task.agent.word and not self.free_words and self.words_ever >= WORDS - 1):
            target = self.cpus[home].own
            self.cpu_records.raw[home].latched = 1
            kicks.append(home)
            self.note_waits(task)
            yield
        elif self.is_delegated(self.channel_or_0(task.agent.channel)):
            self.word_of(task)
            yield from self.tell_waits(task, wakeup, boosted)
        elif last and self.is_usable(task, task.cpu):
            target = self.cpus[task.cpu].local
            self.note_waits(task)
        else:
            waits = not self.kick_any_idle(task)
            if waits and self.channels.raw[self.channel_or_0(task.agent.channel)].tid:
                yield from self.tell_waits(task, wakeup, boosted)
            else:
                self.note_waits(task)
        yield
        target.insert(task, head=boosted)
        if target is self.pending and not self.is_delegated(self.channel_or_0(task.agent.channel)):
            self.kick_any_idle(task)
        for cpu in kicks:
            self.kick(cpu)

    def running(self, task: Task, number: int) -> Steps:
        cpu, record = self.cpus[number], self.cpu_records.raw[number]
        cpu.current, task.cpu = task, number
        task.runs += 1
        record.running = ENCLAVE
        cpu.running_since = self.now_ns
        yield
        # allow_next_latch()
        if record.latched:
            if self.fixes.asks_queue:
                record.latched = 0
                yield
                if cpu.own.tasks:
                    record.latched = 1
            else:
                # Without a barrier, the processor may read the queue before it stores.
                waits = bool(cpu.own.tasks)
                yield
                record.latched = waits
        yield
        record.told_idle = 0
        task.agent.latched = 0
        if task.agent.word:
            self.status_words.raw[task.agent.word].cpu = number
        self.set_state(task, ON_CPU)

    def stopping(self, task: Task, number: int, sleeps: bool) -> Steps:
        self.cpu_records.raw[number].running = 0
        yield
        a = task.agent
        a.runtime_ns += self.now_ns - self.cpus[number].running_since
        if a.word:
            self.status_words.raw[a.word].runtime_ns = a.runtime_ns
        if sleeps:
            yield from self.tell_blocked(task)

    def consume(self, number: int, queue: Queue) -> Iterator[Any]:
        """scx_bpf_dsq_move_to_local(); the kernel ignores the affinity of tasks of the CPU's own runqueue."""
        while True:
            fits = (task for task in queue.tasks if task.cpu == number or task.allowed >> number & 1)
            task = next(fits, None)
            if task is None or not self.is_online(number):
                return False
            if not task.locked:
                queue.remove(task)
                task.cpu = number
                self.cpus[number].local.insert(task)
                return True
            yield

    def rescue(self, here: int, any: bool) -> Iterator[None]:
        for number in self.numbers:
            record, own = self.cpu_records.raw[number], self.cpus[number].own
            looks = record.latched or (self.fixes.asks_queue and record.preempted_by_class)
            if looks and (any or number == here or self.is_lost(number)) and (yield from self.consume(here, own)):
                return
            yield

    def dispatch(self, here: int) -> Steps:
        """core_dispatch() and agent_dispatch()."""
        cpu, record = self.cpus[here], self.cpu_records.raw[here]
        if (yield from self.consume(here, self.fallback)):
            return
        if record.latched or (self.fixes.asks_queue and cpu.own.tasks):
            record.latched = 0
            yield
            if (yield from self.consume(here, cpu.own)):
                record.latched = 1
                return
        yield
        if not self.is_cpu_delegated(here):
            if not (yield from self.consume(here, self.pending)):
                yield from self.rescue(here, True)
            return
        yield from self.rescue(here, False)
        if cpu.local.tasks or record.told_idle or not self.pending.tasks:
            return
        record.told_idle = 1
        yield
        yield from self.tell_cpu(here, MessageType.CPU_IDLE)

    # Events

    def switch(self, number: int, why: str) -> Steps:
        """The CPU's task, if any, leaves it, and another runs; ``why``: block, preempt, yield, exit, taken or look."""
        cpu = self.cpus[number]
        cpu.switching, cpu.preempted = True, False
        task = cpu.current
        if task is not None:
            yield from self.lock(task)
            stays = why in ("preempt", "yield", "taken")
            if stays and not self.is_taken(number):
                task.agent.yielded = why == "yield"
                yield from self.dispatch(number)
            yield from self.stopping(task, number, sleeps=not stays)
            cpu.current = None
            task.runnable = stays
            if stays:
                if not self.is_usable(task, number) and (home := self.home_cpu(task)) is not None:
                    task.cpu = home
                last = not cpu.local.tasks and not self.is_taken(number)
                yield from self.enqueue(task, boosted=why == "taken", last=last)
            elif why == "exit":
                task.gone, task.enabled = True, False
                yield from self.tell_gone(task, MessageType.TASK_DEAD)
            task.locked = False
        yield from self.pick_next(number)

    def pick_next(self, number: int) -> Steps:
        cpu = self.cpus[number]
        while True:
            cpu.kicked = False
            if self.is_taken(number) or not self.is_online(number):
                break
            if not cpu.local.tasks:
                yield from self.dispatch(number)
            if cpu.local.tasks and not self.is_taken(number):
                task = cpu.local.tasks[0]
                if task.locked:
                    yield
                    continue
                cpu.local.remove(task)
                task.locked = True
                yield from self.running(task, number)
                task.locked = False
                break
            if not cpu.kicked:
                break
        cpu.switching = False

    def wake(self, task: Task) -> Steps:
        yield from self.lock(task)
        if not task.runnable and task.enabled and not task.gone:
            yield from self.place(task)
            yield from self.enqueue(task, wakeup=True)
        task.locked = False

    def set_affinity(self, task: Task, allowed: int) -> Steps:
        """__set_cpus_allowed_ptr(): a waiting task leaves its queue meanwhile, and moves to a CPU that it may use."""
        yield from self.lock(task)
        usable = [cpu for cpu in self.numbers if allowed >> cpu & 1 and self.is_online(cpu)]
        if usable and task.enabled and not task.gone and allowed != task.allowed:
            number, waits = task.cpu, task.queue is not None
            runs = self.cpus[number].current is task
            if waits and task.queue is not None:
                task.queue.remove(task)
            if runs:
                yield from self.stopping(task, number, sleeps=False)
            task.allowed = allowed
            yield
            if task.agent.word:
                self.status_words.raw[task.agent.word].allowed = allowed & (1 << 64) - 1
                yield from self.tell(task, task.agent.word, MessageType.TASK_AFFINITY_CHANGED)
            if runs:
                yield from self.running(task, number)
                if not self.is_usable(task, number):
                    self.cpus[number].preempted = True
            elif waits:
                yield from self.enqueue(task)
                if not allowed >> task.cpu & 1:
                    yield
                    if task.queue is not None:
                        task.queue.remove(task)
                    task.cpu = usable[0]
                    yield from self.enqueue(task)
        task.locked = False

    def set_weight(self, task: Task, weight: int) -> Steps:
        yield from self.lock(task)
        task.weight = weight
        if task.agent.word:
            self.status_words.raw[task.agent.word].weight = weight
            yield from self.tell(task, task.agent.word, MessageType.TASK_PRIORITY_CHANGED)
        task.locked = False

    def depart(self, task: Task) -> Steps:
        """The task leaves the class while it waits or sleeps."""
        yield from self.lock(task)
        if task.enabled and self.cpus[task.cpu].current is not task:
            if task.queue is not None:
                task.queue.remove(task)
            task.enabled = task.runnable = False
            yield from self.tell_gone(task, MessageType.TASK_DEPARTED)
        task.locked = False

    def join(self, task: Task) -> Steps:
        """The task comes back to the class, and waits at once."""
        yield from self.lock(task)
        if not task.enabled and not task.gone:
            task.enabled = True
            yield from self.place(task)
            yield from self.enqueue(task)
        task.locked = False

    def exec(self, task: Task, tid: int) -> None:
        """A running thread that is not the leader of its process execs: from now on ``tid`` is its pid."""
        del self.by_tid[task.tid]
        task.tid = task.tgid = tid
        self.by_tid[tid] = task

    def take_cpu(self, number: int) -> Steps:
        """A higher class takes the CPU; its task, and those on its local queue, are enqueued again."""
        cpu = self.cpus[number]
        cpu.switching = True
        self.cpu_records.raw[number].preempted_by_class = 1
        if self.cpu_records.raw[number].latched or (self.fixes.asks_queue and cpu.own.tasks):
            self.kick_any_idle()
        yield
        while cpu.local.tasks:
            task = cpu.local.tasks[0]
            if task.locked:
                yield
                continue
            cpu.local.remove(task)
            task.locked = True
            yield from self.enqueue(task, boosted=True)
            task.locked = False
        yield from self.switch(number, "taken")

    def release_cpu(self, number: int) -> None:
        self.cpu_records.raw[number].preempted_by_class = 0
        self.kick(number)

    def take_offline(self, number: int) -> Steps:
        """The CPU goes offline: its tasks leave it, and tasks committed to it wait on the enclave's queue again."""
        cpu = self.cpus[number]
        cpu.switching = True
        self.set_online(number, False)
        for other in self.numbers:
            if self.is_online(other):
                self.kick(other, preempt=True)
        yield
        yield from self.wait_for_rcu()
        while cpu.local.tasks:
            task = cpu.local.tasks[0]
            if task.locked:
                yield
                continue
            cpu.local.remove(task)
            task.locked = True
            yield from self._requeue(task)
        if cpu.current is not None:
            task = cpu.current
            yield from self.lock(task)
            yield from self.stopping(task, number, sleeps=False)
            cpu.current = None
            yield from self._requeue(task)
        left = [self.pending, self.fallback, cpu.own]
        if self.fixes.hotplug_empties_all:
            left += [other.own for other in self.cpus.values()]
        for task in self.tasks:
            while task.cpu == number and task.locked:
                yield
            if task.cpu == number and task.queue in left:
                task.queue.remove(task)  # type: ignore[union-attr]
                task.locked = True
                yield from self._requeue(task)
        self.cpu_records.raw[number].latched = 0
        yield
        for task in reversed(list(cpu.own.tasks)):
            cpu.own.remove(task)
            self.pending.insert(task, head=True)
        cpu.switching = False
        for other in self.numbers:
            if self.is_online(other):
                self.kick(other, preempt=True)

    def place(self, task: Task) -> Steps:
        """Choose a CPU for the task; the kernel widens the affinity of a task that no online CPU may run."""
        if self.home_cpu(task) is None:
            task.allowed = sum(1 << cpu for cpu in self.numbers)
            if task.agent.word:
                self.status_words.raw[task.agent.word].allowed = task.allowed & (1 << 64) - 1
                yield from self.tell(task, task.agent.word, MessageType.TASK_AFFINITY_CHANGED)
        home = self.home_cpu(task)
        assert home is not None
        task.cpu = home
        yield

    def _requeue(self, task: Task) -> Steps:
        yield from self.place(task)
        yield from self.enqueue(task)
        task.locked = False

    def bring_online(self, number: int) -> None:
        self.set_online(number, True)
        for cpu in self.numbers:
            self.kick(cpu)

    def kick_cpus(self) -> None:
        for cpu in self.numbers:
            if self.is_online(cpu):
                self.kick(cpu)

    # Programs that agents call

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

    def check_task(self, task: Task, txn: Any) -> int:
        a = task.agent
        if not task.enabled or a.gtid != txn.gtid or not a.word:
            return TxnState.NOT_FOUND
        if a.seq != txn.seq:
            return TxnState.STALE
        state = self.status_words.raw[a.word].state
        if state == ON_CPU:
            return TxnState.ON_CPU
        return TxnState.COMPLETE if state == WAITING else TxnState.NOT_RUNNABLE

    def check_cpu(self, task: Task | None, cpu: int) -> int:
        if cpu not in self.cpus:
            return TxnState.INVALID_CPU
        if not self.is_online(cpu):
            return TxnState.CPU_OFFLINE
        return TxnState.INVALID_CPU if task and not self.is_usable(task, cpu) else TxnState.COMPLETE

    def move(self, task: Task, source: Queue, cursor: int, target: Queue, head: bool) -> Iterator[Any]:
        """scx_bpf_dsq_move() with an iterator over ``source`` made when ``source.seq`` was ``cursor``."""
        while task.locked:
            yield
        if task.queue is not source or task.place > cursor:
            return False
        source.remove(task)
        target.insert(task, head)
        return True

    def queue_of(self, task: Task) -> Queue:
        if self.fixes.looks_for_queue:
            own = [cpu.own for cpu in self.cpus.values()]
            return task.queue if task.queue is not None and task.queue in own else self.pending
        return self.cpus[task.agent.latched - 1].own if task.agent.latched else self.pending

    def latch(self, task: Task, txn: Any) -> Iterator[Any]:
        if not self.fixes.checks_each_try:
            return (yield from self.latch_checked_once(task, txn))
        target, moved, state = self.cpus.get(txn.cpu), False, TxnState.COMPLETE
        if target is None:
            return TxnState.INVALID_CPU
        for _ in range(2):
            source, before = self.queue_of(task), task.agent.latched
            yield
            cursor = source.seq
            yield
            state = self.check_task(task, txn)
            yield
            if state == TxnState.COMPLETE:
                state = self.check_cpu(task, txn.cpu)
            if state != TxnState.COMPLETE:
                return state
            yield
            task.agent.latched = 1 + txn.cpu
            yield
            moved = yield from self.move(task, source, cursor, target.own, bool(txn.flags & HEAD))
            if moved:
                break
            if task.agent.latched == 1 + txn.cpu:
                task.agent.latched = before
        if not moved:
            return TxnState.STALE
        yield
        self.cpu_records.raw[txn.cpu].latched = 1
        yield
        state = self.check_cpu(None, txn.cpu)
        if state != TxnState.COMPLETE:
            yield from self.unlatch(task)
        return state

    def unlatch(self, task: Task) -> Steps:
        source = self.queue_of(task)
        if source is not self.pending:
            yield from self.move(task, source, source.seq, self.pending, True)

    def latch_checked_once(self, task: Task, txn: Any) -> Iterator[Any]:
        """latch() without the fix checks_each_try."""
        state = self.check_task(task, txn)
        if state != TxnState.COMPLETE:
            return state
        yield
        state = self.check_cpu(task, txn.cpu)
        if state != TxnState.COMPLETE:
            return state
        a, target, moved = task.agent, self.cpus[txn.cpu].own, False
        source, before = self.queue_of(task), a.latched
        yield
        a.latched = 1 + txn.cpu
        for _ in range(2):
            cursor = source.seq
            yield
            moved = moved or (yield from self.move(task, source, cursor, target, bool(txn.flags & HEAD)))
        if not moved:
            if a.latched == 1 + txn.cpu:
                a.latched = before
            state = self.check_task(task, txn)
            return TxnState.STALE if state == TxnState.COMPLETE else state
        yield
        self.cpu_records.raw[txn.cpu].latched = 1
        return TxnState.COMPLETE

    def call_commit(self, tid: int, number: int, count: int, group: bool) -> Iterator[Any]:
        assert not group, "groups are not modelled"
        if self.channels.raw[number].tid != tid:
            return -1
        first = number * constant("TXNS")
        kicks = dict[int, bool]()
        for txn in self.txns.raw[first : first + count]:
            task = self.by_tid.get(txn.gtid & 0xFFFFFFFF)
            if not txn.gtid:
                txn.state = self.check_cpu(None, txn.cpu)
            elif task is None:
                txn.state = TxnState.NOT_FOUND
            else:
                txn.state = yield from self.latch(task, txn)
            if txn.state == TxnState.COMPLETE:
                kicks[txn.cpu] = kicks.get(txn.cpu, False) or bool(txn.flags & PREEMPT)
            yield
        for cpu, preempt in kicks.items():
            self.kick(cpu, preempt)
            if self.is_lost(cpu):
                self.kick_any_idle()
            yield
        return 0

    def call_register_waiting(self) -> Steps:
        marked = [n for n in self.numbers if self.fixes.asks_queue or self.cpu_records.raw[n].latched]
        queues = [self.pending, *(self.cpus[number].own for number in marked)]
        for task in [task for queue in queues for task in queue.tasks]:
            if not task.enabled or not self.word_of(task):
                continue
            task.agent.told_state = WAITING
            self.count_load(task, self.status_words.raw[task.agent.word])
            yield
            if not self.fixes.stock_does_not_guess and task.queue is None and task.agent.word:
                self.status_words.raw[task.agent.word].state = ON_CPU
            yield

    def associate(self, task: Task, number: int, channel: int) -> Steps:
        a, w = task.agent, self.status_words.raw[number]
        a.channel = channel
        for _ in range(4):
            state, seq = w.state, a.seq + 1
            yield
            waits = state == WAITING
            yield from self.tell(task, number, MessageType.TASK_NEW if waits else MessageType.TASK_BLOCKED)
            if w.state == state and a.seq == seq:
                return
        self.channels.raw[channel].overflowed = 1

    def call_associate(self, gtid: int, channel: int) -> Iterator[Any]:
        task = self.by_tid.get(gtid & 0xFFFFFFFF)
        if task is None or task.agent.gtid != gtid or not task.agent.word:
            return -3
        number = task.agent.word
        yield
        yield from self.associate(task, number, channel)
        return 0

    def call_take(self, channel: int, source: int, most: int) -> Iterator[Any]:
        taken = 0
        for task in list(self.pending.tasks):
            w = self.status_words.raw[task.agent.word]
            if taken >= most:
                break
            if not task.agent.word or w.state != WAITING or w.channel == channel:
                continue
            if not (w.channel == source if source else w.channel) or not self.is_usable(task, channel - 1):
                continue
            yield from self.associate(task, task.agent.word, channel)
            taken += 1
        return taken

    def call_leave(self, tid: int, number: int) -> None:
        if self.channels.raw[number].tid == tid:
            self.channels.raw[number].tid = 0
            self.kick_cpus()

    # State, for tests

    def waiting(self) -> Iterable[Task]:
        """The tasks that wait for a CPU."""
        running = {cpu.current for cpu in self.cpus.values()}
        return [task for task in self.tasks if task.runnable and task not in running]
