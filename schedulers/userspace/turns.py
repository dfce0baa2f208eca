# SPDX-License-Identifier: Apache-2.0
"""The turns of an agent: what it does for each message and each decision.

One turn reads every message in the ring, calls ``schedule()`` once, and commits all that it returns. agents/native/ has
the same in C.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ..agents import PolicyView
from ..agents.channel import Channel
from ..agents.cpus import CpuFlags
from ..agents.extension import native
from ..agents.layout import packer
from ..agents.status_words import StatusWords
from ..agents.task import (
    BLOCKED,
    BOOSTED,
    LATCHED,
    ON_CPU,
    WAITING,
    MessageType,
    Task,
    Transaction,
    TxnState,
    message_format,
)
from ..core import constant
from .priority_queue import PriorityQueue
from .refusals import Refusals
from .run_queue import RunQueue

if TYPE_CHECKING:
    from .agent import Agent

#: With the fast path no task waits for the agent. So it lets messages gather, for _GATHER times as long as its last
#: turn took, within these limits.
_GATHER, _GATHER_LEAST_S, _GATHER_MOST_S = 4, 0.002, 0.02
#: How many turns a spinning agent makes between checks whether it must move to another CPU.
_MOVE_TURNS = 256
_RECALL_NS = 100_000_000
# Plain numbers for the loop over messages, where looking up an enum's member each time takes too long.
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
_CPU_IDLE, _CPUS_CHANGED = int(MessageType.CPU_IDLE), int(MessageType.CPUS_CHANGED)
_COMPLETE, _TASK_ON_CPU, _NOT_PERMITTED = map(int, (TxnState.COMPLETE, TxnState.ON_CPU, TxnState.NOT_PERMITTED))
#: struct numbers of agents/native/turns.h.
_NUMBERS = (
    *(_NEW, _LAST_WAITING, _TASK_BLOCKED, _DEAD, _DEPARTED, BOOSTED),
    *(BLOCKED, WAITING, ON_CPU, LATCHED, _COMPLETE, _TASK_ON_CPU, _NOT_PERMITTED),
    *(constant("AGENT_IDLE"), constant("AGENT_BUSY")),
    *(_CPU_IDLE, _CPUS_CHANGED),
)
#: struct message, txn and commit_args of agents/native/turns.h.
_LAYOUTS = "QQQQIHHIiiI", "QQIiII", "IIII"


class Pause(IntEnum):
    """Why Turns.serve() returned."""

    REPLACED = 0  #: another agent has taken over
    UPKEEP = 1  #: the time is up
    NO_MESSAGE = 2  #: none came while the agent slept
    MOVE = 3  #: the agent spins, and must check whether it is on the right CPU


def turns_of(agent: Agent, channel: Channel, words: StatusWords, refusals: Refusals, pause_s: float) -> Turns:
    """The turns of ``agent``, native ones if they can be."""
    if native is None or (of_channel := channel.for_native()) is None:
        return Turns(agent, channel, words, refusals, pause_s)
    layouts = message_format(), *(packer(name).format.removeprefix("=") for name in ("txn", "commit_args"))
    assert layouts == _LAYOUTS, f"the native half knows other structs: {layouts}"
    of_channel["columns"] |= words.columns
    return native.Turns(  # type: ignore[no-any-return]
        agent=agent,
        tasks=agent.tasks,
        refusals=refusals,
        refused=refusals.tasks,
        transaction=Transaction,
        numbers=(*_NUMBERS, channel.cpus),
        pause_ns=int(pause_s * 1e9),
        rounds=1 + len(agent.cpus),
        spins=agent.spins,
        fastpath=agent.fastpath,
        **of_channel,
    )


class Turns:
    """The turns of ``agent``, which sleeps at most ``pause_s`` seconds between two of them."""

    def __init__(self, agent: Agent, channel: Channel, words: StatusWords, refusals: Refusals, pause_s: float) -> None:
        self._agent, self._channel, self._words, self._refusals, self._pause_s = (
            agent,
            channel,
            words,
            refusals,
            pause_s,
        )
        self._rounds = range(1 + len(agent.cpus))
        self._recall_ns = 0

    def use(
        self,
        policy: PolicyView,
        callbacks: list[Callable[[Any], object] | None],
        task_type: type[Task],
        schedule: Callable[[], Iterable[Transaction] | None],
        enqueue: Callable[[Task], object],
        affinity_changed: Callable[[Task], object],
    ) -> None:
        """Decide by ``policy`` from now on; ``callbacks`` are by the type of message, None where none is needed."""
        self._policy, self._callbacks, self._task_type, self._schedule = policy, callbacks, task_type, schedule
        self._enqueue, self._affinity_changed = enqueue, affinity_changed

    def waits(self, task: Task) -> bool:
        """Whether ``task`` still waits, by its status word."""
        if self._words.waits(task):
            return True
        if task.state == WAITING:
            # Otherwise _read() would take its next message to wait for one that only tells of a move.
            task.state = ON_CPU
        return False

    def decides_for(self, task: Task) -> bool:
        """Whether the messages of ``task`` come to this agent, by its status word."""
        return self._words.channel(task) == self._channel.number

    def assign(
        self,
        queue: RunQueue | PriorityQueue[Any],
        flags: CpuFlags,
        with_busy: bool,
        slice_ns: int,
        near: Mapping[int, int] | None,
        taken: RunQueue | None,
        otherwise: Callable[[], object] | None,
    ) -> list[Transaction]:
        """For each idle CPU, then each busy one, take the first task out of ``queue`` that may run and still waits.

        ``near`` is for a RunQueue. ``taken`` gets each task taken out, even if it waits no longer. ``otherwise()`` is
        called if tasks are in the queue, and no CPU got one.
        """
        transactions = []
        for cpu in (flags.open() if with_busy else flags.idle()) if queue else ():
            while task := queue.pop(cpu) if near is None else queue.pop_near(cpu, near[cpu]):  # type: ignore[union-attr]
                if taken is not None:
                    taken.add(task)
                if self.waits(task):
                    transactions.append(Transaction(task, cpu, slice_ns))
                    break
        if otherwise is not None and queue and not transactions:
            otherwise()
        return transactions

    def match(
        self, queue: RunQueue, flags: CpuFlags, busy: bool, slice_ns: int, siblings: dict[int, tuple[int, ...]]
    ) -> list[Transaction]:
        """Give each idle CPU, or each busy one, a task out of ``queue``: see RunQueue.match()."""
        if not queue:
            return []
        pairs = queue.match(flags.busy() if busy else flags.idle(), siblings)
        return [Transaction(task, cpu, slice_ns) for task, cpu in pairs]

    def commit(self, transactions: Sequence[Transaction], group: bool) -> list[int]:
        """Commit ``transactions``, in batches; the TxnState of each."""
        size, results = self._channel.batch, []
        for start in range(0, len(transactions), size):
            batch = transactions[start : start + size]
            states = self._channel.commit(batch, group)
            for transaction, state in zip(batch, states, strict=True):
                if state != _COMPLETE:
                    self._agent.failed(transaction, state)
                elif (task := transaction.task) is not None:
                    task.state, task.next_cpu = LATCHED, transaction.cpu
                    if self._refusals.tasks:
                        self._refusals.forget(task)
            results += states
        self._channel.count(committed=results.count(_COMPLETE), failed=len(results) - results.count(_COMPLETE))
        return results

    def decide(self) -> list[int]:
        """Commit what the policy decides, and decide again where the core already runs one of these tasks."""
        results: list[int] = []
        for _ in self._rounds:
            transactions = list(self._schedule() or ())
            states = self.commit(transactions, False) if transactions else []
            results += states
            if _TASK_ON_CPU not in states:
                break
        return results

    def turn(self) -> bool:
        """Read every message, and commit what the policy decides; whether the next turn is due at once."""
        began_ns = self._channel.begin_turn()
        if self._channel.overflowed:
            self._agent.resync()
        read = self._read()
        if self._refusals.tasks:
            self._agent.offer_rested()
        if began_ns >= self._recall_ns:
            self._recall_ns = began_ns + _RECALL_NS
            self._agent.recall()
        results = self.decide()
        committed = results.count(_COMPLETE)
        is_busy = read > 0 or committed > 0
        if is_busy:
            self._channel.count_turn(read, began_ns)
        self._channel.end_turn()
        return self._channel.overflowed or (is_busy and (committed < len(results) or self._policy.looks_again))

    def serve(self, until_ns: int) -> int:
        """Make turns until ``until_ns`` of CLOCK_MONOTONIC, or until something else is to be done: a Pause."""
        turns = 0
        while not self._agent.spins or turns < _MOVE_TURNS:
            began = time.monotonic()
            if not self._channel.is_ours:
                return Pause.REPLACED
            if began * 1e9 >= until_ns:
                return Pause.UPKEEP
            is_due = self.turn()
            turns += 1
            if self._agent.spins:
                continue
            if self._agent.fastpath:
                took = time.monotonic() - began
                time.sleep(min(max(_GATHER * took, _GATHER_LEAST_S), _GATHER_MOST_S))
            elif is_due:
                continue
            if not self._channel.wait(self.pause()):
                return Pause.NO_MESSAGE
        return Pause.MOVE

    def pause(self) -> float:
        """For how many seconds the agent may sleep if no message comes."""
        due_ns = self._policy.due_ns
        if rested_ns := self._refusals.due_ns:
            due_ns = min(due_ns or rested_ns, rested_ns)
        if not due_ns:
            return self._pause_s
        return min(max(due_ns - time.monotonic_ns(), 0) / 1e9, self._pause_s)

    def is_valid(self, gtid: int, kind: int, cpu: int, word: int) -> bool:
        """Whether the core can have sent a message with these members."""
        if not _NEW <= kind <= _CPUS_CHANGED:
            return False
        has_cpu = 0 <= cpu < self._channel.cpus
        if gtid:
            return kind < _CPU_IDLE and has_cpu and word < len(self._words)
        return kind >= _CPU_IDLE and (has_cpu or kind == _CPUS_CHANGED)

    def _read(self) -> int:
        skipped = self._channel.skipped
        records = self._channel.read()
        if self._channel.skipped != skipped:
            self._agent.note_skipped()
        ignored = 0
        tasks, callbacks, refused = self._agent.tasks, self._callbacks, self._refusals.tasks
        is_wide, allowed_rest = self._words.is_wide, self._words.allowed_rest
        for _, gtid, runtime_ns, at_ns, allowed, seq, kind, flags, word, cpu, tgid, weight in records:
            if not self.is_valid(gtid, kind, cpu, word):
                self._agent.ignore_message(kind)
                ignored += 1
                continue
            callback = callbacks[kind]
            if not gtid:
                if callback is not None:
                    callback(cpu)
                continue
            task = tasks.get(gtid)
            ends = kind in (_DEAD, _DEPARTED)
            if task is None:
                if ends:
                    continue
                task = tasks[gtid] = self._task_type(gtid)
                if kind <= _LAST_WAITING:
                    kind, callback = _NEW, callbacks[_NEW]
            elif seq <= task.seq:
                continue  # the status words were newer
            rested = refused and task in refused and self._refusals.forget(task)
            before = task.allowed
            if is_wide:
                allowed |= allowed_rest(word)
            task.seq, task.cpu, task.since_ns, task.allowed = seq, cpu, at_ns, allowed
            task.weight, task.tgid, task.word = weight, tgid, word
            if kind <= _LAST_WAITING:
                # A task that has not run since its last message to wait was only moved, and keeps its place.
                moved = task.state == WAITING and task.runtime_ns == runtime_ns and not rested
                task.state, task.runtime_ns, task.boosted = WAITING, runtime_ns, flags & BOOSTED != 0
                if not moved:
                    if callback is not None:
                        callback(task)
                elif allowed != before:
                    # The message of associate() can overtake that of the change of affinity.
                    self._affinity_changed(task)
                continue
            task.runtime_ns = runtime_ns
            if kind == _TASK_BLOCKED:
                task.state = BLOCKED
            elif ends:
                task.state = BLOCKED
                del tasks[gtid]
            if rested and task.state == WAITING:
                self._enqueue(task)
            if callback is not None:
                callback(task)
        return len(records) - ignored
