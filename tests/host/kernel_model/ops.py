# SPDX-License-Identifier: Apache-2.0
"""The ops of sched_ext: what the core does when the kernel asks it to place, queue, run or stop a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ghostbpf.schedulers.agents.task import MessageType

from .messages import WOKEN, Messages
from .state import ENCLAVE, ON_CPU, WORDS, Queue, Steps, Task


class Ops(Messages):
    """Messages, with the ops; their callers hold the lock of the task's runqueue."""

    def place(self, task: Task) -> Steps:
        """Choose a CPU for the task; the kernel widens the affinity of a task that no online CPU may run."""
        if self.home_cpu(task) is None:
            task.allowed = sum(1 << cpu for cpu in self.numbers)
            if task.agent.word:
                self.note_allowed(task.agent.word, task.allowed)
                yield from self.tell(task, task.agent.word, MessageType.TASK_AFFINITY_CHANGED)
        home = self.home_cpu(task)
        assert home is not None
        task.cpu = home
        yield

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
            self.note_latches()
            if self.is_taken(home):
                self.report_stuck()
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
            record, own, lost = self.cpu_records.raw[number], self.cpus[number].own, self.is_lost(number)
            if record.latched:
                self.note_latches()
            looks = (lost and self.fixes.asks_queue) or ((any or lost) and record.latched)
            if looks and own.tasks:
                if lost:
                    self.report_stuck()
                if (yield from self.consume(here, own)):
                    return
            yield

    def rescue_latched(self, here: int) -> Steps:
        enclave = self.enclaves.raw[ENCLAVE]
        if enclave.latches or enclave.stuck or self.words_ever >= WORDS - 1:
            enclave.latches = 0
            yield
            enclave.stuck = 0
            yield
            yield from self.rescue(here, True)

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
                yield from self.rescue_latched(here)
            return
        if self.enclaves.raw[ENCLAVE].stuck:
            self.enclaves.raw[ENCLAVE].stuck = 0
            yield
            yield from self.rescue(here, False)
        if cpu.local.tasks or record.told_idle or not self.pending.tasks:
            return
        ch = self.channels.raw[self.channel_or_0(1 + here)]
        if ch.reads_cpus and ch.state == WOKEN and not record.preempted_by_class:
            return
        record.told_idle = 1
        yield
        yield from self.tell_cpu(here, MessageType.CPU_IDLE)
