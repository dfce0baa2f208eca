# SPDX-License-Identifier: Apache-2.0
"""What happens to tasks and CPUs: wakeups, switches, changes of affinity, other classes, hotplug."""

from __future__ import annotations

from ghostbpf.schedulers.agents.task import MessageType

from .ops import Ops
from .state import Steps, Task


class Events(Ops):
    """Ops, with the events in which the kernel calls them."""

    # A CPU

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

    # A task

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
                self.note_allowed(task.agent.word, allowed)
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

    def set_cgroup(self, task: Task, cgroup: tuple[int, int]) -> Steps:
        """sched_move_task(): a waiting task leaves its queue and is enqueued again."""
        yield from self.lock(task)
        task.cgroup = cgroup
        if task.queue is not None and task.enabled:
            task.queue.remove(task)
            yield
            yield from self.enqueue(task)
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

    # Other classes, and hotplug

    def take_cpu(self, number: int) -> Steps:
        """A higher class takes the CPU; its task, and those on its local queue, are enqueued again."""
        cpu = self.cpus[number]
        cpu.switching = True
        self.cpu_records.raw[number].preempted_by_class = 1
        if self.cpu_records.raw[number].latched or (self.fixes.asks_queue and cpu.own.tasks):
            self.report_stuck()
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
        self.report_stuck()
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

    def _requeue(self, task: Task) -> Steps:
        yield from self.place(task)
        yield from self.enqueue(task)
        task.locked = False

    def bring_online(self, number: int) -> None:
        self.set_online(number, True)
        for cpu in self.numbers:
            self.kick(cpu)
