# SPDX-License-Identifier: Apache-2.0
"""The agent: keeps its tasks, and lets its policy decide what the core runs.

It goes from turn to turn (see turns.py). An agent sleeps while its ring is empty or, with a CPU of its own, spins. If
it hangs or dies, the core schedules its tasks without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ...hints import Hints
from ...loaders.errors import GhostError
from ..agents import AgentPolicySpec, PolicyView
from ..agents.kernel import KernelInterface
from ..agents.task import (
    BLOCKED,
    LATCHED,
    ON_CPU,
    WAITING,
    MessageType,
    StatusWord,
    Task,
    Transaction,
    TxnState,
)
from ..cpuset import CpuSet
from ..enclave import Enclave
from ..enclave_view import Counters
from .agent_cpu import AgentCpu
from .garbage import Garbage
from .priority_queue import PriorityQueue
from .refusals import Refusals
from .run_queue import RunQueue
from .turns import Pause, turns_of

_RING_BYTES = 1 << 20
#: How often run() does the upkeep, and how long an idle agent sleeps at most.
_UPKEEP_S = 0.25
_UPKEEP_NS = int(_UPKEEP_S * 1e9)
_HINTS_S = 0.001  # a new hint does not wake the agent
_STATES = {int(state): state for state in TxnState}
_SOON_AGAIN = (TxnState.STALE, TxnState.INVALID_CPU, TxnState.CPU_OFFLINE, TxnState.POISONED)


class Agent:
    """An agent of ``enclave``: for the whole enclave, or for ``cpu`` alone.

    It decides by the policy ``spec`` with the options ``values``. ``bank`` is where the policy's BPF program is, by
    default the live one. The thread that creates this object is the agent, from take_over() on. It reaches the kernel
    through ``kernel``, by default the running one.
    """

    def __init__(
        self,
        enclave: Enclave,
        spec: AgentPolicySpec,
        values: Mapping[str, int],
        cpu: int | None = None,
        bank: int | None = None,
        kernel: KernelInterface | None = None,
    ) -> None:
        self._kernel = kernel = kernel or KernelInterface(enclave, spec, bank)
        self.enclave, self.cpu, self._values = enclave, cpu, values
        self.tasks: dict[int, Task] = {}
        self._refusals = Refusals()
        self.topology = kernel.topology()
        self.status_words = kernel.status_words()
        self.spins, self.fastpath = bool(values.get("spin")), bool(values["fastpath"])
        self._channel = kernel.channel(0 if cpu is None else 1 + cpu, values.get("ring_bytes", _RING_BYTES))
        self._enclave_cpus = enclave.cpus
        self._enclave_ids = frozenset(self._enclave_cpus)  # a test of it takes no frame of Python
        self._cpus = self._enclave_cpus if cpu is None else CpuSet([cpu])
        self._flags = kernel.cpu_flags(tuple(self._cpus))
        self._enclave_flags = kernel.cpu_flags(tuple(self._enclave_cpus))
        self._params_map, self.params = kernel.params()
        self._hints = kernel.hints() if spec.agent.hinted else None
        pause_s = _UPKEEP_S if self._hints is None else _HINTS_S
        own_cpu = values.get("agent_cpu", -1) if cpu is None else cpu
        self._own_cpu = AgentCpu(enclave, kernel, self.topology, self._flags.is_online, cpu=own_cpu, spins=self.spins)
        self._turns = turns_of(self, self._channel, self.status_words, self._refusals, pause_s)
        # Where these are native, a policy calls them without a frame of Python in between.
        self.open_cpus, self.idle_cpus = self._flags.open, self._flags.idle  # type: ignore[method-assign]
        self.busy_cpus, self.waits = self._flags.busy, self._turns.waits  # type: ignore[method-assign]
        self.decides_for = self._turns.decides_for  # type: ignore[method-assign]
        if spec.weighs_cgroups:
            self.cgroup = self.status_words.cgroup  # type: ignore[method-assign]
        self._is_rehearsing = self.stopped = self._warned = False
        self._spec = spec
        self._make_policy()

    def _make_policy(self) -> None:
        own = {option.field for option in self._spec.agent.options}
        values = {name: value for name, value in self._values.items() if name in own}
        self.policy: PolicyView = self._spec.agent(self, **values)
        callbacks: list[Callable[[Any], object] | None] = [None] * (1 + max(MessageType))
        for kind in MessageType:
            name = kind.name.lower().replace("task_affinity", "affinity").replace("task_priority", "priority")
            callbacks[kind] = self.policy.callback(f"on_{name}")
        callbacks[MessageType.CPUS_CHANGED] = lambda _: self._follow_cpus()
        self._turns.use(
            self.policy,
            callbacks,
            self.policy.task_type,
            self.policy.schedule,
            self.policy.enqueue,
            self.policy.on_affinity_changed,
        )

    @property
    def cpus(self) -> CpuSet:
        """The CPUs that it decides for: the enclave's, or its own, if that is one of them."""
        return self._cpus

    @property
    def hints(self) -> Hints:
        """What applications say of their tasks; only where the policy is ``hinted``."""
        if self._hints is None:
            raise GhostError(f"{self.policy.name} has no hints", hint="set hinted = True in the policy's class")
        return self._hints

    def open_cpus(self) -> list[int]:
        """Its CPUs that have nothing committed and that no other class holds, the idle ones first."""
        return self._flags.open()

    def idle_cpus(self) -> list[int]:
        """Its CPUs that run no task, have nothing committed, and that no other class holds; the agent's own first."""
        return self._flags.idle()

    def idle_enclave_cpus(self) -> list[int]:
        """CPUs of the enclave that run no task, have nothing committed, and that no other class holds."""
        return self._enclave_flags.idle()

    def busy_cpus(self) -> list[int]:
        """Its CPUs that run a task of the enclave and have nothing committed."""
        return self._flags.busy()

    def waits(self, task: Task) -> bool:
        """Whether ``task`` still waits, by its status word: the core may have run it without asking the agent."""
        return self._turns.waits(task)

    def decides_for(self, task: Task) -> bool:
        """Whether the messages of ``task`` still come to this agent: that of another CPU may have taken it."""
        return self._turns.decides_for(task)

    def cgroup(self, task: Task) -> tuple[int, int]:
        """The cgroup of ``task``, and its weight with those of the cgroups above it; 2**20 is that of cpu.weight 100.

        The cgroup is a number, and 0 if it is the root, or no cgroup of the enclave has had a weight of its own. Both
        are as they were when the task last began to wait. Only where the policy ``weighs_cgroups``.
        """
        raise GhostError(f"{self.policy.name} has no cgroups", hint="set weighs_cgroups = True in the policy's class")

    def first_in_first_out(
        self,
        queue: RunQueue,
        slice_ns: int = 0,
        near: Mapping[int, int] | None = None,
        *,
        otherwise: Callable[[], object] | None = None,
    ) -> Callable[[], list[Transaction]]:
        """A ``schedule()`` that gives each idle CPU the first task of ``queue`` that may run there and still waits.

        With the fast path, CPUs that run a task get the next one, too. ``near[cpu]`` is a mask of the CPUs near
        ``cpu``: see RunQueue.pop_near(). ``otherwise()`` is called if tasks are in the queue, and no CPU got one.
        """
        return partial(self._turns.assign, queue, self._flags, self.fastpath, slice_ns, near, None, otherwise)

    def match(
        self, queue: RunQueue, slice_ns: int, siblings: dict[int, tuple[int, ...]], *, busy: bool
    ) -> Callable[[], list[Transaction]]:
        """A function that gives each idle CPU, or each busy one, a task out of ``queue``: see RunQueue.match()."""
        return partial(self._turns.match, queue, self._flags, busy, slice_ns, siblings)

    def fill_idle(self, queue: RunQueue | PriorityQueue[Any], taken: RunQueue) -> Callable[[], list[Transaction]]:
        """A function that gives each idle CPU the first task of ``queue`` that may run there and still waits.

        It moves each task that it takes out of ``queue`` to ``taken``, those that wait no longer, too.
        """
        return partial(self._turns.assign, queue, self._flags, False, 0, None, taken, None)

    def counters(self) -> Counters:
        """The core's counters of the enclave; see ``struct counters`` in bpf/abi.h."""
        return self.enclave.counters()

    def ticks(self, on: bool) -> None:
        """Ask the core for a message at each tick of a CPU that runs a task, or for none any more."""
        if not self._is_rehearsing:
            self._channel.record.ticks = on

    def commit(self, transactions: Iterable[Transaction], *, group: bool = False) -> list[TxnState]:
        """Commit ``transactions`` in batches, or all or none of them as one ``group``; returns the state of each.

        A state that the core does not write is NOT_PERMITTED. Raises ValueError where a group is larger than a batch.
        """
        transactions = list(transactions)
        if group and len(transactions) > self._channel.batch:
            raise ValueError(f"a group of {len(transactions)} transactions: at most {self._channel.batch}")
        if self._is_rehearsing:
            return [TxnState.COMPLETE] * len(transactions)
        states = self._turns.commit(transactions, group)
        return [_STATES.get(state, TxnState.NOT_PERMITTED) for state in states]

    def associate(self, task: Task, cpu: int) -> bool:
        """Give ``task`` to the agent of ``cpu``, or the enclave's if ``cpu`` has none; False where the task is gone."""
        self.tasks.pop(task.gtid, None)
        self._refusals.forget(task)
        return self._is_rehearsing or self._channel.associate(task.gtid, 1 + cpu)

    def take(self, limit: int, cpu: int | None = None) -> int:
        """Take over up to ``limit`` tasks that wait for the agent of ``cpu`` (None: of any); returns how many.

        It takes those that have waited longest, may run on its own CPU and are committed to none. Each arrives as a new
        task.
        """
        if self._is_rehearsing:
            return 0
        return self._channel.take(limit, 0 if cpu is None else 1 + cpu)

    def loads(self) -> dict[int, int]:
        """How many tasks run or wait for each CPU that has an agent of its own."""
        loads = self._channel.loads()
        return {number - 1: loads[number] for number in self._channel.channels_with_agent() if number}

    def highest_load(self) -> int:
        """The highest of loads(), or more while tasks have no agent yet; it costs less than loads()."""
        return max(self._channel.loads())

    def is_online(self, cpu: int) -> bool:
        """Whether ``cpu`` is online, and still the enclave's."""
        return cpu in self._enclave_ids and self._flags.is_online(cpu)

    def may_run(self, task: Task, cpu: int) -> bool:
        """Whether ``cpu`` is online and ``task`` may run there."""
        return task.may_run_on(cpu) and self.is_online(cpu)

    def has_agent(self, cpu: int) -> bool:
        """Whether ``cpu`` has an agent of its own."""
        return 1 + cpu in self._channel.channels_with_agent()

    def agent_cpus(self) -> list[int]:
        """The CPUs that are online and have an agent of their own."""
        return [number - 1 for number in self._channel.channels_with_agent() if number and self.is_online(number - 1)]

    def prepare(self) -> None:
        """Do before take_over() all that may fail: move to the agent's CPU, and try the policy.

        Raises what the policy raises.
        """
        self._own_cpu.bind()
        self._rehearse()

    def _rehearse(self) -> None:
        """Have the policy decide once for the tasks of the agent in charge, and discard policy and decisions.

        Every task is shown as waiting: the policy gets no callback for a task that sleeps. A new policy object takes
        over.
        """
        if not (words := self._words_by_age(lambda word: True)):
            return
        self._is_rehearsing = True
        try:
            for number, word in words:
                self._learn(number, word._replace(state=WAITING))
            self._channel.check(list(self.policy.schedule() or ()))
        finally:
            self._is_rehearsing = False
        self.tasks.clear()
        self._make_policy()

    def take_over(self, *, per_cpu: bool = False) -> None:
        """Become the agent that the core sends messages to. Raises what the policy raises.

        With ``per_cpu`` it assigns tasks to the agents of CPUs, and the take-over is complete after confirm().
        """
        self._own_cpu.bind()
        self._channel.take_over(
            timeout_ns=self._values["timeout_ns"],
            fastpath=self.fastpath,
            spins=self.spins,
            policy=self.policy.name,
            per_cpu=per_cpu,
            reads_cpus=self.policy.callback("on_cpu_idle") is None,
        )
        if self.cpu is None:
            self._channel.spin_on(self._own_cpu.spin_cpu)
        self._channel.register_waiting()
        self.resync()
        self._turns.decide()
        self._channel.end_turn()
        if self.cpu is None and not per_cpu:
            self.confirm()

    def confirm(self) -> None:
        """Complete the take-over: the former agents leave. Until then, they return if this agent fails."""
        self._channel.confirm()

    @property
    def tid(self) -> int:
        """The tid of its thread in the initial pid namespace."""
        return self._channel.tid

    @property
    def successor(self) -> tuple[bool, int]:
        """Whether the enclave's last take-over is complete, and the tid of its agent, or 0 if that has left."""
        return self._channel.successor

    def run(self, upkeep: Callable[[], None] | None = None) -> None:
        """Decide until another agent takes over, the enclave is gone, or stop() is called.

        It returns within a quarter of a second after that. It calls ``upkeep`` four times a second.
        """
        garbage = Garbage()
        upkeep_at = time.monotonic_ns() + _UPKEEP_NS
        while True:
            if self.spins and self._own_cpu.move_if_needed():
                self._channel.spin_on(self._own_cpu.spin_cpu)
            match self._turns.serve(upkeep_at):
                case Pause.REPLACED:
                    return
                case Pause.NO_MESSAGE:
                    garbage.collect(idle=True)
                case Pause.UPKEEP:
                    upkeep_at = time.monotonic_ns() + _UPKEEP_NS
                    self._channel.keep_pulse()
                    self._own_cpu.rebind()
                    self._follow_cpus()
                    garbage.collect(idle=False)
                    if upkeep is not None:
                        upkeep()

    def turn(self) -> bool:
        """Read every message, and commit what the policy decides; whether the next turn is due at once."""
        return self._turns.turn()

    def stop(self, reason: str) -> None:
        """End run(), and let the core decide at once; for signal handlers."""
        self.stopped = True
        self._channel.leave(reason)

    def leave(self, reason: str = "") -> None:
        """Let the core decide from here on, and record why."""
        self._channel.leave(reason)

    def _follow_cpus(self) -> None:
        """Learn of a resize of the enclave, of which a message told, unless the loader was killed before it did."""
        if (cpus := self.enclave.cpus) == self._enclave_cpus:
            return
        self._enclave_cpus, self._enclave_ids = cpus, frozenset(cpus)
        self._cpus = cpus if self.cpu is None else cpus & CpuSet([self.cpu])
        self._flags.set(tuple(self._cpus))
        self._enclave_flags.set(tuple(cpus))
        self.recall()
        self.policy.on_cpus_changed(self._cpus)

    def adopt(self, cpu: int) -> None:
        """Dismiss the agent of ``cpu``, which the enclave has lost, and take over the tasks that used its channel."""
        self._channel.dismiss(1 + cpu)
        self.resync()

    def resync(self) -> None:
        """Learn from the status words what lost messages told, in the order in which tasks began to wait."""
        self._follow_cpus()
        self._channel.record.overflowed = 0
        self._channel.record.resyncs += 1
        own, others = self._channel.number, set(self._channel.channels_with_agent())
        # The enclave's agent also has the tasks of channels without an agent.
        words = self._words_by_age(lambda word: word.channel == own or (own == 0 and word.channel not in others))
        gone = self.tasks.keys() - {word.gtid for _, word in words}
        for gtid in gone:
            self._refusals.forget(self.tasks[gtid])
            self.policy.on_task_departed(self.tasks.pop(gtid))
        for number, word in words:
            self._learn(number, word)

    def skip_record(self) -> bool:
        """Skip the next record of the ring if it is discarded or as long as no message; whether it did."""
        before = self._channel.skipped
        skipped = self._channel.skip_record()
        if self._channel.skipped != before:
            self.note_skipped()
        return skipped

    def note_skipped(self) -> None:
        """Take records that were skipped for lost messages."""
        self._take_for_lost(f"a record of {self._channel.skipped[1]} bytes")

    def ignore_message(self, kind: int) -> None:
        """Take a message of type ``kind`` that the core cannot have sent for a lost one."""
        self._take_for_lost(f"an impossible message of type {kind}")

    def _take_for_lost(self, what: str) -> None:
        self._channel.ask_for_resync()
        if not self._warned:
            self._warned = True
            sys.stderr.write(
                f"warning: {what} in the ring of channel {self._channel.number}: skipped\n"
                "  the agent reads the status words instead; it does not report further ones\n"
            )

    def _words_by_age(self, condition: Callable[[StatusWord], bool]) -> list[tuple[int, StatusWord]]:
        """The status words that meet ``condition``, with their numbers, by how long they have been in their state."""
        words = [(number, word) for number, word in self.status_words.in_use() if condition(word)]
        return sorted(words, key=lambda pair: pair[1].since_ns)

    def _learn(self, number: int, word: StatusWord) -> None:
        task = self.tasks.get(word.gtid)
        is_new = task is None
        if task is None:
            task = self.tasks[word.gtid] = self.policy.task_type(word.gtid)
        elif word.seq == task.seq:
            return
        before, allowed = task.state, task.allowed
        if self._refusals.forget(task):
            before = BLOCKED  # the policy does not have it in a queue
        task.word, task.seq, task.cpu, task.tgid = number, word.seq, word.cpu, word.tgid
        task.weight, task.allowed, task.runtime_ns = word.weight, word.allowed, word.runtime_ns
        task.since_ns, task.boosted, task.state = word.since_ns, bool(word.boosted), word.state
        if word.state == WAITING and is_new:
            self.policy.on_task_new(task)
        elif word.state == WAITING and before != WAITING:
            self.policy.on_task_wakeup(task)
        elif word.state == BLOCKED and before != BLOCKED:
            self.policy.on_task_blocked(task)
        if not is_new and word.allowed != allowed:
            self.policy.on_affinity_changed(task)

    def failed(self, transaction: Transaction, state: int) -> None:
        """``transaction`` failed: tell the policy, now or when its task has rested."""
        task = transaction.task
        if task is None:
            return
        if state == TxnState.ON_CPU:
            task.state = ON_CPU
        elif state == TxnState.NOT_RUNNABLE:
            task.state = BLOCKED
        elif state in _SOON_AGAIN and self._still_waits(task):
            task.state = WAITING
            if not self._refusals.add(transaction, task, TxnState(state), time.monotonic_ns()):
                self.policy.on_refused(transaction, TxnState(state))
        elif self.tasks.pop(task.gtid, None) is not None:
            self._refusals.forget(task)
            self.policy.on_task_departed(task)

    def offer_rested(self) -> None:
        """Tell the policy of the refused tasks that have rested."""
        for transaction, state in self._refusals.rested(time.monotonic_ns()):
            self.policy.on_refused(transaction, state)

    def recall(self) -> None:
        """Decide again for tasks that still wait though they are committed to a CPU that is idle, offline or lost.

        No message tells that the CPU went offline.
        """
        idle = self._flags.idle()
        for task in list(self.tasks.values()):
            if task.state != LATCHED or (task.next_cpu not in idle and self.is_online(task.next_cpu)):
                continue
            if self.status_words.waits(task):
                task.state = WAITING
                self.policy.on_refused(Transaction(task, task.next_cpu), TxnState.CPU_OFFLINE)

    def _still_waits(self, task: Task) -> bool:
        word = self.status_words[task.word]
        if word.gtid != task.gtid or word.channel != self._channel.number:
            return False
        task.allowed = word.allowed
        return True
