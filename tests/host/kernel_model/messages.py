# SPDX-License-Identifier: Apache-2.0
"""Channels, status words, and the messages that tell agents what happens to tasks and CPUs."""

from __future__ import annotations

from typing import Any

from ghostbpf.schedulers.agents.task import MessageType
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.cpuset import CpuSet

from .state import BLOCKED, WAITING, WORDS, State, Steps, Task

IDLE, WOKEN, BUSY = (constant(f"AGENT_{name}") for name in ("IDLE", "WOKEN", "BUSY"))
BOOSTED = constant("MSG_BOOSTED")


class Messages(State):
    """State, with the functions that send messages."""

    # Channels

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

    @staticmethod
    def asks(kind: int) -> bool:
        return kind < MessageType.TASK_BLOCKED or kind > MessageType.TASK_DEPARTED

    def post(self, number: int, message: tuple[Any, ...]) -> Steps:
        ch, ring, kind = self.channels.raw[number], self.rings.get(number), message[6]
        if not ch.tid:
            return
        if not self.fixes.counts_questions and self.asks(kind) and ch.oldest_pending_ns <= ch.heartbeat_ns:
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
        if self.fixes.counts_questions and self.asks(kind):
            if ch.asked == ch.answered:
                ch.oldest_pending_ns = message[3]
            ch.asked += 1
            yield
        if self.fixes.posts_in_order:
            rests = ch.state == IDLE
        wakes = False
        if self.asks(kind) and not ch.spins and rests and ch.state == IDLE:
            ch.state = WOKEN
            wakes = True
        yield
        place[0] = message
        if wakes:
            self.sleepers[number]()

    # Status words

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

    def note_allowed(self, number: int, allowed: int) -> None:
        first, *rest = CpuSet.from_bits(allowed).words(constant("CPU_WORDS"))
        self.status_words.raw[number].allowed = first
        if self.allowed_rest is not None:
            self.allowed_rest.raw[number].words = rest

    def word_of(self, task: Task) -> int:
        a = task.agent
        if not a.word and (number := self.take_word()):
            w = self.status_words.raw[number]
            w.runtime_ns = w.seq = w.channel = w.boosted = 0
            w.state, w.since_ns = WAITING, self.now_ns
            self.note_allowed(number, task.allowed)
            self.task_cgroups.raw[number].cgroup = 0
            w.weight, w.cpu, w.tgid = task.weight, task.cpu, task.tgid
            self.gtids += 1
            w.gtid = a.gtid = self.gtids << 32 | task.tid
            a.word, a.runtime_ns, a.seq = number, 0, 0
        return a.word

    # Messages

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
        w.boosted = flags & BOOSTED
        self.told.setdefault(gtid, []).append(seq)
        yield
        yield from self.post(
            channel,
            (0, gtid, a.runtime_ns, self.now_ns, w.allowed, seq, kind, flags, number, w.cpu, w.tgid, w.weight),
        )

    def tell_cpu(self, cpu: int, kind: int) -> Steps:
        yield from self.post(self.channel_or_0(1 + cpu), (0, 0, 0, self.now_ns, 0, 0, kind, 0, 0, cpu, 0, 0))

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
        self.note_allowed(number, task.allowed)
        own = self.task_cgroups.raw[number]
        own.cgroup, own.weight = task.cgroup
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
