# SPDX-License-Identifier: Apache-2.0
"""The programs that agents call: commit, association, taking over, and leaving."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ghostbpf.schedulers.agents.task import MessageType, TxnState
from ghostbpf.schedulers.core import constant

from .messages import Messages
from .state import ON_CPU, WAITING, Queue, Steps, Task

PREEMPT, HEAD = constant("TXN_PREEMPT"), constant("TXN_HEAD")


class Programs(Messages):
    """Messages, with the programs."""

    # Commit

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
        self.note_latches()
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
        yield
        self.note_latches()
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
                self.report_stuck()
                self.kick_any_idle()
            yield
        return 0

    # Tasks of an agent

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
