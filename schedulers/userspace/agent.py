# SPDX-License-Identifier: Apache-2.0
"""The agent: reads what the core tells, keeps its tasks, asks its policy, and commits what that decides.

One turn: every message there is, then one ``schedule()``, then one commit of all it wants. An agent sleeps while
there is nothing to read, or, with a CPU of its own, spins. Whatever happens to it, the core goes on without.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...hints import Hints
from ...loaders.errors import GhostError
from ..agents import AgentPolicySpec
from ..cpuset import CpuSet
from ..enclave import Counters, Enclave
from .channel import Kernel
from .cpus import CpuFlags
from .garbage import Garbage
from .policy import AgentPolicy
from .status_words import StatusWords
from .task import BLOCKED, BOOSTED, LATCHED, ON_CPU, WAITING, MessageType, StatusWord, Task, Transaction, TxnState

_RING_BYTES = 1 << 20
_LOOK_UP_S = 0.25
_HINTS_S = 0.001  # nothing wakes an agent up for a hint
#: With the fast path nobody has to wait for the agent: messages gather, for so much of the time that a turn took.
_GATHER, _GATHER_LEAST_S, _GATHER_MOST_S = 4, 0.002, 0.02
_HOP_TURNS = 256
# As plain numbers, for the loop over messages: an enum's member is looked up each time.
_NEW, _LAST_WAITING, _TASK_BLOCKED, _DEAD, _DEPARTED = (
    int(kind)
    for kind in (
        MessageType.TASK_NEW,
        MessageType.TASK_YIELD,
        MessageType.TASK_BLOCKED,
        MessageType.TASK_DEAD,
        MessageType.TASK_DEPARTED,
    )
)
_COMPLETE, _TASK_ON_CPU = int(TxnState.COMPLETE), int(TxnState.ON_CPU)
_STATES = tuple(TxnState)  # by number
#: For how long a task that was refused rests, when nothing was told of it since it was refused before: twice as long
#: each time. What it may do and what the core does not agree, and the next try would end as the last did.
_REST_LEAST_NS, _REST_MOST_NS = 1_000_000, 64_000_000
_RECALL_NS = 100_000_000
_SOON_AGAIN = (TxnState.STALE, TxnState.INVALID_CPU, TxnState.CPU_OFFLINE, TxnState.POISONED)


class Agent:
    """One agent of ``enclave``: of the whole of it, or of ``cpu`` alone.

    ``half`` is its BPF half with the policy's class, ``values`` are the options of both; ``bank`` is where that half
    is, unless it is the live one. The thread that makes it is the agent, from take_over() on. It reaches the kernel
    through ``kernel``, by default the one that runs.
    """

    def __init__(
        self,
        enclave: Enclave,
        half: AgentPolicySpec,
        values: dict[str, int],
        cpu: int | None = None,
        bank: int | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self._kernel = kernel = kernel or Kernel(enclave, half, bank)
        self.enclave, self.cpu, self._values = enclave, cpu, values
        self.tasks: dict[int, Task] = {}
        self._resting: dict[Task, tuple[int, Transaction, TxnState]] = {}  # refused again and again: until when
        self._refused_tasks: set[Task] = set()  # since the last message about each
        self._shunned = 0  # until when CPUs that were refused are not tried again; 0: there are none
        self.topology = kernel.topology()
        self.status_words = StatusWords(kernel.agents)
        self.spins, self.fastpath = bool(values.get("spin")), bool(values["fastpath"])
        self._channel = kernel.channel(0 if cpu is None else 1 + cpu, values.get("ring_bytes", _RING_BYTES))
        self._cpus = enclave.cpus if cpu is None else CpuSet([cpu])
        self._cpu_record = enclave.core.cpus
        self._rounds = range(1 + len(self._cpus))
        self._flags = CpuFlags(enclave, tuple(self._cpus))
        self._recall_ns = 0
        self._params_map, self.params = kernel.params()
        self._hints = kernel.hints() if half.agent.hinted else None
        self._pause_s = _LOOK_UP_S if self._hints is None else _HINTS_S
        self._seen_switches = 0
        self._spot: int | None = None  # the CPU that it spins on
        self._home: int | None = None  # the CPU that it sleeps on, where that matters
        self._is_settled = self._rehearses = False
        self.stopped = False
        self._half = half
        self._make_policy()

    def _make_policy(self) -> None:
        own = {option.field for option in self._half.agent.options}
        values = {name: value for name, value in self._values.items() if name in own}
        self.policy: AgentPolicy = self._half.agent(self, **values)
        self._callbacks: Any = [None] * (1 + max(MessageType))
        for kind in MessageType:
            name = kind.name.lower().replace("task_affinity", "affinity").replace("task_priority", "priority")
            self._callbacks[kind] = getattr(self.policy, f"on_{name}")

    @property
    def cpus(self) -> CpuSet:
        """The CPUs it decides for: the enclave's, or its own."""
        return self._cpus

    @property
    def hints(self) -> Hints:
        """What applications say of their tasks; only where the policy is ``hinted``."""
        if self._hints is None:
            raise GhostError(f"{self.policy.name} has no hints", hint="hinted = True in the policy's class")
        return self._hints

    def open_cpus(self) -> list[int]:
        """Those of its CPUs for which nothing is committed, and which no other class has; the idle ones first."""
        return self._flags.open()

    def idle_cpus(self) -> list[int]:
        """Those of its CPUs that have nothing to do."""
        return self._flags.idle()

    def busy_cpus(self) -> list[int]:
        """Those of its CPUs that run a task of the enclave, and for which nothing is committed."""
        return self._flags.busy()

    def waits(self, task: Task) -> bool:
        """Whether ``task`` still waits, by its status word; with the fast path, a CPU may have taken it meanwhile."""
        if self.status_words.waits(task):
            return True
        if task.state == WAITING:
            task.state = ON_CPU  # or its next message to wait would be taken for one that it has been moved
        return False

    def counters(self) -> Counters:
        """What the core counts for the enclave; see ``struct counters`` in bpf/abi.h."""
        return self.enclave.counters()

    def ticks(self, on: bool) -> None:
        """Have the core tell each tick of a CPU that runs a task, or no longer."""
        if not self._rehearses:
            self._channel.record.ticks = on

    def commit(self, transactions: Iterable[Transaction], *, group: bool = False) -> list[TxnState]:
        """Commit ``transactions`` in batches, or as one ``group``, all of them or none; the state of each.

        Raises ValueError where a group is larger than one batch.
        """
        wanted = list(transactions)
        if group and len(wanted) > self._channel.batch:
            raise ValueError(f"a group of {len(wanted)} transactions: at most {self._channel.batch}")
        if self._rehearses:
            return [TxnState.COMPLETE] * len(wanted)
        return [_STATES[state] for state in self._commit(wanted, group)]

    def _commit(self, wanted: Sequence[Transaction], group: bool = False) -> list[int]:
        size, results = self._channel.batch, []
        for start in range(0, len(wanted), size):
            batch = wanted[start : start + size]
            states = self._channel.commit(batch, group)
            for transaction, state in zip(batch, states, strict=True):
                if state != _COMPLETE:
                    self._failed(transaction, state)
                elif (task := transaction.task) is not None:
                    task.state, task.next_cpu = LATCHED, transaction.cpu
                    if self._refused_tasks:
                        self._forgive(task)
            results += states
        self._channel.count(committed=results.count(_COMPLETE), failed=len(results) - results.count(_COMPLETE))
        return results

    def associate(self, task: Task, cpu: int) -> bool:
        """Hand ``task`` to the agent of ``cpu``, or the enclave's where that has none; False where the task is gone."""
        self.tasks.pop(task.gtid, None)
        self._forgive(task)
        return self._rehearses or self._channel.associate(task.gtid, 1 + cpu)

    def take(self, most: int, cpu: int | None = None) -> int:
        """Take tasks over that wait for the agent of ``cpu`` (None: of any), longest first; how many there were.

        At most ``most`` of those that may run on its own CPU and are committed to none; they come as new ones.
        """
        if self._rehearses:
            return 0
        return self._channel.take(most, 0 if cpu is None else 1 + cpu)

    def loads(self) -> dict[int, int]:
        """How many tasks run or wait for each CPU that has an agent of its own."""
        loads = self._channel.loads()
        return {number - 1: loads[number] for number in self._channel.others() if number}

    def is_online(self, cpu: int) -> bool:
        """Whether ``cpu`` is online."""
        return self._flags.is_online(cpu)

    def may_run(self, task: Task, cpu: int) -> bool:
        """Whether ``task`` may run on ``cpu``, and that is online."""
        return task.may_run_on(cpu) and self.is_online(cpu)

    def has_agent(self, cpu: int) -> bool:
        """Whether ``cpu`` has an agent of its own."""
        return 1 + cpu in self._channel.others()

    def agent_cpus(self) -> list[int]:
        """The CPUs that are online and have an agent of their own."""
        return [number - 1 for number in self._channel.others() if number and self.is_online(number - 1)]

    def prepare(self) -> None:
        """Do before take_over() what may fail: go to the agent's CPU, and try the policy. Raises whatever that does."""
        self._settle()
        self._rehearse()

    def _rehearse(self) -> None:
        """Show a policy the tasks that the agent before knows, have it decide, and throw it and its decisions away.

        Another one, which knows nothing of that, then takes over.
        """
        if not (words := self._by_age(lambda word: True)):
            return
        self._rehearses = True
        try:
            for number, word in words:
                self._learn(number, word)
            self._channel.check(list(self.policy.schedule() or ()))
        finally:
            self._rehearses = False
        self.tasks.clear()
        self._make_policy()

    def take_over(self, *, per_cpu: bool = False) -> None:
        """Become the agent: from here on the core asks this one. Raises whatever the policy does.

        With ``per_cpu`` it is the one that hands tasks out to the agents of CPUs.
        """
        if not self._is_settled:
            self._settle()
        self._channel.take_over(
            timeout_ns=self._values["timeout_ns"],
            fastpath=self.fastpath,
            spins=self.spins,
            policy=self.policy.name,
            per_cpu=per_cpu,
        )
        if self.cpu is None:
            self._channel.spin_on(self._spot)
        self._channel.register_waiting()
        self.resync()
        self._decide()
        self._channel.rest()

    def run(self, look_around: Callable[[], None] | None = None) -> None:
        """Decide until another agent takes over, the enclave is gone, or stop() is called.

        It ends at the latest a quarter of a second after that. As often it calls ``look_around``.
        """
        garbage = Garbage()
        looked = time.monotonic()
        for turns in itertools.count():
            if not self._channel.mine:
                return
            if self.spins and turns % _HOP_TURNS == 0:
                self._hop_if_wanted()
            began = time.monotonic()
            if began >= looked + _LOOK_UP_S:
                looked = began
                self._look_around()
                garbage.collect(idle=False)
                if look_around is not None:
                    look_around()
            goes_on = self.turn()
            if self.spins:
                continue
            if self.fastpath:
                took = time.monotonic() - began
                time.sleep(min(max(_GATHER * took, _GATHER_LEAST_S), _GATHER_MOST_S))
            elif goes_on:
                continue
            if not self._channel.wait(self._pause()):
                garbage.collect(idle=True)

    def _look_around(self) -> None:
        """Follow CPUs that came or went: a CPU that goes ends the pulse on it, and what was bound to it is not."""
        self._channel.keep_pulse()
        home = self._home
        if home is not None and self.is_online(home) and os.sched_getaffinity(0) != {home}:
            with contextlib.suppress(OSError):  # it is gone again
                os.sched_setaffinity(0, {home})

    def _pause(self) -> float:
        """For how many seconds there may be nothing to do."""
        due_ns = self.policy.due_ns
        if self._resting:
            rested_ns = min(until_ns for until_ns, _, _ in self._resting.values())
            due_ns = min(due_ns or rested_ns, rested_ns)
        if not due_ns:
            return self._pause_s
        return min(max(due_ns - time.monotonic_ns(), 0) / 1e9, self._pause_s)

    def turn(self) -> bool:
        """Read every message there is, and commit what the policy wants; whether the next turn is due at once."""
        began_ns = self._channel.beat()
        if self._channel.overflowed:
            self.resync()
        read = self._read()
        if self._resting or self._shunned:
            self._try_again()
        if began_ns >= self._recall_ns:
            self._recall_ns = began_ns + _RECALL_NS
            self._recall()
        results = self._decide()
        committed = results.count(_COMPLETE)
        is_busy = read > 0 or committed > 0
        if is_busy:
            self._channel.count_turn(read, began_ns)
        self._channel.rest()
        return self._channel.overflowed or (is_busy and (committed < len(results) or self.policy.looks_again))

    def stop(self, reason: str) -> None:
        """Have run() end, and let the core decide at once; for signal handlers."""
        self.stopped = True
        self._channel.leave(reason)

    def leave(self, reason: str = "") -> None:
        """Let the core decide from here on, and say why."""
        self._channel.leave(reason)

    def resync(self) -> None:
        """Learn from the status words what messages may have been lost; in the order in which tasks began to wait."""
        self._channel.record.overflowed = 0
        self._channel.record.resyncs += 1
        own, others = self._channel.number, set(self._channel.others())
        # The agent of the enclave answers for what no other does.
        there = self._by_age(lambda word: word.channel == own or (own == 0 and word.channel not in others))
        gone = self.tasks.keys() - {word.gtid for _, word in there}
        for gtid in gone:
            self._forgive(self.tasks[gtid])
            self.policy.on_task_departed(self.tasks.pop(gtid))
        for number, word in there:
            self._learn(number, word)

    def _by_age(self, wanted: Callable[[StatusWord], bool]) -> list[tuple[int, StatusWord]]:
        """The ``wanted`` status words with their numbers; those whose state is the oldest first."""
        there = [(number, word) for number, word in self.status_words.in_use() if wanted(word)]
        return sorted(there, key=lambda pair: pair[1].since_ns)

    def _learn(self, number: int, word: StatusWord) -> None:
        task = self.tasks.get(word.gtid)
        is_new = task is None
        if task is None:
            task = self.tasks[word.gtid] = self.policy.task_type(word.gtid)
        elif word.seq == task.seq:
            return
        before, allowed = task.state, task.allowed
        if self._forgive(task):
            before = BLOCKED  # its policy has not got it
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

    def _read(self) -> int:
        records = self._channel.read()
        tasks, callbacks, refused = self.tasks, self._callbacks, self._refused_tasks
        for _, gtid, runtime_ns, at_ns, allowed, seq, kind, flags, word, cpu, tgid, weight in records:
            if not gtid:
                callbacks[kind](cpu)
                continue
            task = tasks.get(gtid)
            ends = kind in (_DEAD, _DEPARTED)
            if task is None:
                if ends:
                    continue
                task = tasks[gtid] = self.policy.task_type(gtid)
                kind = _NEW if kind <= _LAST_WAITING else kind
            elif seq <= task.seq:
                continue  # the status words told more
            rested = refused and task in refused and self._forgive(task)
            before = task.allowed
            task.seq, task.cpu, task.since_ns, task.allowed = seq, cpu, at_ns, allowed
            task.weight, task.tgid, task.word = weight, tgid, word
            if kind <= _LAST_WAITING:
                # One that has not run since it was told to wait has only been moved, and keeps its place.
                moved = task.state == WAITING and task.runtime_ns == runtime_ns and not rested
                task.state, task.runtime_ns, task.boosted = WAITING, runtime_ns, flags & BOOSTED != 0
                if not moved:
                    callbacks[kind](task)
                elif allowed != before:
                    # associate() is told beside the task's own messages: it can overtake the change of affinity.
                    self.policy.on_affinity_changed(task)
                continue
            task.runtime_ns = runtime_ns
            if kind == _TASK_BLOCKED:
                task.state = BLOCKED
            elif ends:
                task.state = BLOCKED
                del tasks[gtid]
            if rested and task.state == WAITING:
                self.policy.enqueue(task)
            callbacks[kind](task)
        return len(records)

    def _decide(self) -> list[int]:
        """Commit what the policy wants, and where CPUs have taken such tasks by themselves, what it wants then."""
        results: list[int] = []
        for _ in self._rounds:
            wanted = list(self.policy.schedule() or ())
            states = self._commit(wanted) if wanted else []
            results += states
            if _TASK_ON_CPU not in states:
                break
        return results

    def _failed(self, transaction: Transaction, state: int) -> None:
        task = transaction.task
        if task is None:
            return
        if state == TxnState.ON_CPU:
            task.state = ON_CPU
        elif state == TxnState.NOT_RUNNABLE:
            task.state = BLOCKED
        elif state in _SOON_AGAIN and self._still_waits(task):
            task.state = WAITING
            self._refused(transaction, task, TxnState(state))
        elif self.tasks.pop(task.gtid, None) is not None:
            self._forgive(task)
            self.policy.on_task_departed(task)

    def _refused(self, transaction: Transaction, task: Task, state: TxnState) -> None:
        """The policy gets ``task`` back: at once the first time, and if that goes on without a word of it, later."""
        now, cpu = time.monotonic_ns(), transaction.cpu
        self._refused_tasks.add(task)
        if state == TxnState.INVALID_CPU and cpu > 63 and task.may_run_on(cpu):
            self._shunned = self._shunned or now + int(_LOOK_UP_S * 1e9)
            task.refused |= 1 << cpu
        else:
            task.refusals += 1
        if task.refusals > 1:
            rest_ns = min(_REST_LEAST_NS << min(task.refusals - 2, 16), _REST_MOST_NS)
            self._resting[task] = now + rest_ns, transaction, state
        else:
            self.policy.on_refused(transaction, state)

    def _try_again(self) -> None:
        """The policy gets back those that have rested; what was refused long ago may not be any more."""
        now = time.monotonic_ns()
        for task, (until_ns, transaction, state) in list(self._resting.items()):
            if until_ns <= now:
                del self._resting[task]
                self.policy.on_refused(transaction, state)
        if self._shunned and now >= self._shunned:
            self._shunned = 0
            for task in self.tasks.values():
                task.refused = 0

    def _recall(self) -> None:
        """Decide again for what was committed to a CPU that idles: it was offline since, which no message tells."""
        idle = self._flags.idle()
        for task in list(self.tasks.values()):
            if task.state != LATCHED or (task.next_cpu not in idle and self.is_online(task.next_cpu)):
                continue
            if self.status_words.waits(task):
                task.state = WAITING
                self.policy.on_refused(Transaction(task, task.next_cpu), TxnState.CPU_OFFLINE)

    def _forgive(self, task: Task) -> bool:
        """There is news of ``task``, and what was refused may not be any more; whether it rested."""
        task.refusals = task.refused = 0
        self._refused_tasks.discard(task)
        return self._resting.pop(task, None) is not None

    def _still_waits(self, task: Task) -> bool:
        word = self.status_words[task.word]
        if word.gtid != task.gtid or word.channel != self._channel.number:
            return False
        task.allowed = word.allowed
        return True

    def _settle(self) -> None:
        """Go to the agent's CPU."""
        wanted = self._values.get("agent_cpu", -1) if self.cpu is None else self.cpu
        if self.spins and wanted < 0:
            wanted = next(filter(self.is_online, self.enclave.cpus))
        if wanted >= 0:
            self._kernel.stay_on(wanted)
            self._home = None if self.spins else wanted
        self._is_settled = True
        if self.spins:
            self._spot = wanted
            self._seen_switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw

    def _hop_if_wanted(self) -> None:
        """Spin on another CPU where somebody else wants this one, or it goes: near by preference."""
        assert self._spot is not None
        here, switches = self._spot, resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        is_wanted = switches != self._seen_switches or self._cpu_record[here].agent_must_move
        if self.is_online(here) and not is_wanted:
            return
        near: Sequence[CpuSet] = self.topology.neighbours(here)
        others = (cpu for ring in near for cpu in ring & self.enclave.cpus if cpu != here)
        if (choice := next(filter(self.is_online, others), None)) is None:
            return
        self._kernel.stay_on(choice)
        self._spot, self._seen_switches = choice, switches
        self._channel.spin_on(choice)
