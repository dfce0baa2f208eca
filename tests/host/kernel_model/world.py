# SPDX-License-Identifier: Apache-2.0
"""The model's kernel and its agents, and a schedule of bytes that says what happens at each point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ghostbpf.loaders import libc
from ghostbpf.schedulers.agents import AgentPolicySpec, channel, status_words
from ghostbpf.schedulers.userspace import agent as agent_module
from ghostbpf.schedulers.userspace import central, cfs, edf, shinjuku, turns
from ghostbpf.schedulers.userspace.task_assigner import TaskAssigner

from .fixes import ALL_FIXES, Fixes
from .interface import ModelInterface
from .kernel import Kernel
from .runner import Runner
from .state import Task

_CLOCKED = (agent_module, central, cfs, edf, channel, shinjuku, status_words, turns)
#: At a point of an agent, a byte from this value on makes another event happen first.
_ACTS = 168
_ROUND_NS = 50_000_000
_LOOK_UP_ROUNDS = 5  # an agent that sleeps makes a turn every quarter of a second
_ROUNDS, _TURNS = 40, 400


class Violation(AssertionError):
    """An invariant does not hold."""


class World:
    """One enclave under the policy ``spec`` on a core with ``fixes``; play() runs a schedule."""

    def __init__(
        self,
        spec: AgentPolicySpec,
        fixes: Fixes = ALL_FIXES,
        *,
        cpus: int = 3,
        tasks: int = 4,
        first_cpu: int = 0,
        ring_records: int = 64,
        events: str = "",
        **values: int,
    ) -> None:
        self.values = values
        self.flows: list[Iterator[Any]] = []
        self._schedule = b""
        self._at = 0
        self._clock = _Clock(self)
        self.kernel = Kernel(cpus, fixes, self.point, first_cpu)
        self.interface = ModelInterface(self.kernel, self.run, ring_records)
        self.spec = spec
        self._next_tid = 100
        self._depth = 0
        self._is_replacing = False
        everywhere = sum(1 << cpu for cpu in self.kernel.numbers)
        for number in range(tasks):
            self.kernel.tasks.append(self._make(everywhere, first_cpu + number % cpus))
        self.runners: list[Runner] = []
        self._events = [getattr(self, f"_{name}") for name in events.split()] if events else self._all_events()
        with self.clocked():
            self._start_agents()

    # The clock

    @contextlib.contextmanager
    def clocked(self) -> Iterator[None]:
        """For the block, agents read the model's clock."""
        before = [(module, module.time) for module in _CLOCKED]  # type: ignore[attr-defined]
        current_cpu = libc.current_cpu
        try:
            for module in _CLOCKED:
                module.time = self._clock  # type: ignore[attr-defined]
            libc.current_cpu = lambda: -1
            yield
        finally:
            for module, time in before:
                module.time = time  # type: ignore[attr-defined]
            libc.current_cpu = current_cpu

    # Setup

    def _make(self, allowed: int, cpu: int) -> Task:
        self._next_tid += 1
        task = Task(self._next_tid, 10, allowed, cpu)
        self.kernel.by_tid[task.tid] = task
        return task

    def _start_agents(self) -> None:
        spec = self.spec
        if not spec.agent.per_cpu:
            self.runners = [Runner(self, spec, None)]
            return
        self.runners = [Runner(self, TaskAssigner.spec_for(spec), None)]
        for cpu in self.kernel.numbers:
            self.runners.append(Runner(self, spec, cpu))

    # The schedule

    def _byte(self) -> int:
        if self._at >= len(self._schedule):
            return 0
        self._at += 1
        return self._schedule[self._at - 1]

    def point(self) -> None:
        """Between two steps of an agent: run the events that the schedule says."""
        if self._depth > 6:
            return
        while (byte := self._byte()) >= _ACTS:
            self._depth += 1
            self._act(byte - _ACTS)
            self._depth -= 1

    def _act(self, number: int) -> None:
        self._start_due()
        if self.flows and number % 2:
            flow = self.flows[number // 2 % len(self.flows)]
            for _ in range(1 << 2 * (number // 16 % 3)):
                if flow in self.flows:
                    self._step(self.flows.index(flow))
            return
        self.kernel.now_ns += 1000 * (number % 3)
        event: Callable[[int], None] = self._events[number // 2 % len(self._events)]
        event(self._byte())

    def _step(self, index: int) -> None:
        flow = self.flows[index]
        try:
            next(flow)
        except StopIteration:
            self.flows.remove(flow)

    def _step_all(self) -> None:
        for flow in list(self.flows):
            if flow in self.flows:
                self._step(self.flows.index(flow))

    def run(self, program: Iterator[Any]) -> Any:
        """Run a program of an agent to its end; other CPUs go on meanwhile, for it may have to wait for them."""
        self.kernel.readers_now.add(program)
        for _ in range(10_000):
            try:
                next(program)
            except StopIteration as end:
                self.kernel.readers_now.discard(program)
                return end.value
            self.point()
            if self._at >= len(self._schedule):
                self._step_all()
        raise Violation("a program of an agent does not end")

    def _start_due(self) -> None:
        for number in self.kernel.numbers:
            cpu = self.kernel.cpus[number]
            if cpu.switching or not self.kernel.is_online(number):
                continue
            if cpu.current is None and (cpu.kicked or cpu.local.tasks) and not self.kernel.is_taken(number):
                cpu.kicked = False
                self._start(self._switch(number, "look"))
            elif cpu.current is not None and cpu.preempted and not cpu.current.locked:
                self._start(self._switch(number, "preempt"))

    def _switch(self, number: int, why: str) -> Iterator[None]:
        self.kernel.cpus[number].switching = True
        return self.kernel.switch(number, why)

    def _start(self, flow: Iterator[Any]) -> None:
        self.flows.append(flow)

    def play(self, schedule: bytes) -> None:
        """Run ``schedule``, then settle twice, the second time after all tasks woke; raises Violation."""
        with self.clocked():
            self._schedule, self._at = schedule, 0
            while self._at < len(self._schedule):
                self._start_due()
                self._act(self._byte())
            self.settle()
            for task in self.kernel.tasks:
                if not task.runnable and not task.gone and task.enabled:
                    self._start(self.kernel.wake(task))
            self.settle()

    # Events

    def _all_events(self) -> list[Callable[[int], None]]:
        names = "turn turn turn turn turn wake wake wake wake block block preempt preempt yield_ affinity affinity"
        names += " affinity weight depart join take release offline online exec exit"
        return [getattr(self, f"_{name}") for name in names.split()]

    def _task(self, byte: int) -> Task:
        return self.kernel.tasks[byte % len(self.kernel.tasks)]

    def _cpu(self, byte: int) -> int:
        return self.kernel.numbers[byte % len(self.kernel.numbers)]

    def _turn(self, byte: int) -> None:
        runner = self.runners[byte % len(self.runners)]
        if byte >= 128 or runner.is_due():
            runner.turn()

    def _replace(self, byte: int) -> None:
        """Another agent of the same policy takes over."""
        index = byte % len(self.runners)
        before = self.runners[index]
        if before.in_turn or self.spec.agent.per_cpu or self._is_replacing:
            return
        self._is_replacing = True
        self.runners[index] = Runner(self, self.spec, None)
        self._is_replacing = False

    def _return(self, byte: int) -> None:
        """Other agents of the same policy take over, do for a while, and leave; those before them take over again."""
        before = self.runners
        if self._is_replacing or any(runner.in_turn for runner in before):
            return
        self._is_replacing = True
        self._start_agents()
        for _ in range(byte % 8):
            self.point()
        for runner in self.runners:
            runner.agent.leave("a mistake")
            self.point()
        self.runners = before
        for runner in before:
            runner.come_back()
        self._is_replacing = False

    def _wake(self, byte: int) -> None:
        task = self._task(byte)
        if not task.runnable and not task.locked and task.enabled and not task.gone:
            self._start(self.kernel.wake(task))

    def _leave_cpu(self, byte: int, why: str) -> None:
        number = self._cpu(byte)
        cpu = self.kernel.cpus[number]
        if cpu.current is not None and not cpu.switching and not cpu.current.locked:
            self._start(self._switch(number, why))

    def _block(self, byte: int) -> None:
        self._leave_cpu(byte, "block")

    def _preempt(self, byte: int) -> None:
        self._leave_cpu(byte, "preempt")

    def _yield_(self, byte: int) -> None:
        self._leave_cpu(byte, "yield")

    def _exit(self, byte: int) -> None:
        """A task begins to exit, or ends; at most spec of the tasks do."""
        task = self.kernel.cpus[self._cpu(byte)].current
        if task is not None and task.exiting:
            self._leave_cpu(byte, "exit")
        elif task is not None and sum(task.exiting for task in self.kernel.tasks) < len(self.kernel.tasks) // 2:
            task.exiting = True
            self.kernel.by_tid.pop(task.tid, None)

    def _affinity(self, byte: int) -> None:
        task, mask = self._task(byte), 0
        for index, cpu in enumerate(self.kernel.numbers):
            mask |= (byte >> 2 + index % 6 & 1) << cpu
        if not any(mask >> cpu & 1 and self.kernel.is_online(cpu) for cpu in self.kernel.numbers):
            return
        if not task.locked and not (self._runs(task) and self.kernel.cpus[task.cpu].switching):
            self._start(self.kernel.set_affinity(task, mask))

    def _runs(self, task: Task) -> bool:
        return self.kernel.cpus[task.cpu].current is task

    def _weight(self, byte: int) -> None:
        self._start(self.kernel.set_weight(self._task(byte), 50 + byte))

    def _cgroup(self, byte: int) -> None:
        """The task moves to another cgroup, or its cgroup gets another weight."""
        task, cgroup = self._task(byte), byte >> 2 & 3
        if not (task.queue and task.queue.name.startswith("local")):
            self._start(self.kernel.set_cgroup(task, (cgroup, (1 + (byte >> 4)) << 14)))

    def _depart(self, byte: int) -> None:
        task = self._task(byte)
        if task.enabled and not self._runs(task) and not (task.queue and task.queue.name.startswith("local")):
            self._start(self.kernel.depart(task))

    def _join(self, byte: int) -> None:
        if not self._task(byte).enabled:
            self._start(self.kernel.join(self._task(byte)))

    def _take(self, byte: int) -> None:
        number = self._cpu(byte)
        cpu = self.kernel.cpus[number]
        free = not cpu.switching and not (cpu.current and cpu.current.locked)
        if free and not self.kernel.is_taken(number) and self.kernel.is_online(number):
            cpu.switching = True
            self._start(self.kernel.take_cpu(number))

    def _release(self, byte: int) -> None:
        if self.kernel.is_taken(self._cpu(byte)):
            self.kernel.release_cpu(self._cpu(byte))

    def _offline(self, byte: int) -> None:
        """The first CPU never goes offline."""
        number = self._cpu(byte)
        cpu = self.kernel.cpus[number]
        free = not cpu.switching and not (cpu.current and cpu.current.locked)
        if number != self.kernel.numbers[0] and free and self.kernel.is_online(number):
            cpu.switching = True
            self._start(self.kernel.take_offline(number))

    def _online(self, byte: int) -> None:
        number = self._cpu(byte)
        if not self.kernel.is_online(number) and not self.kernel.cpus[number].switching:
            self.kernel.bring_online(number)

    def _lend(self, byte: int) -> None:
        """A CPU of another enclave idles, and takes a waiting task."""
        if self.kernel.cpus[self.kernel.lent].current is None and not self.kernel.cpus[self.kernel.lent].switching:
            self._start(self._switch(self.kernel.lent, "look"))

    def _reclaim(self, byte: int) -> None:
        """The borrowed turn ends."""
        cpu = self.kernel.cpus[self.kernel.lent]
        if cpu.current is not None and not cpu.switching and not cpu.current.locked:
            why = ("block", "preempt", "yield")[byte % 3]
            self._start(self._switch(self.kernel.lent, "exit" if cpu.current.exiting else why))

    def _exec(self, byte: int) -> None:
        task = self._task(byte)
        if self._runs(task) and not task.locked and not task.exiting:
            self._next_tid += 1
            self.kernel.exec(task, self._next_tid)

    # The end

    def settle(self) -> None:
        """Without further events, and with tasks that sleep once they have run, check that every task gets a CPU."""
        self._finish_flows()
        for number in self.kernel.numbers:
            if self.kernel.is_taken(number):
                self.kernel.release_cpu(number)
        turns = 0
        for _ in range(_ROUNDS):
            while True:
                self._finish_flows()
                self._check()
                due = [runner for runner in self.runners if runner.is_due() and runner.channel.is_ours]
                busy = [n for n, cpu in self.kernel.cpus.items() if cpu.current and not cpu.switching]
                for runner in due:
                    turns += 1
                    runner.turn()
                for number in busy:
                    self.kernel.now_ns += 1000
                    self._start(self._switch(number, "block"))
                if not due and not busy and not self._has_due():
                    break
                if turns > _TURNS:
                    raise Violation(f"{turns} turns of agents, and these wait: {self.kernel.waiting()}")
            if not self.kernel.waiting():
                self._check_told()
                return
            self._pass_time()
        raise Violation(f"these get no CPU: {self._describe()}")

    def _has_due(self) -> bool:
        self._start_due()
        return bool(self.flows)

    def _finish_flows(self) -> None:
        for _ in range(100_000):
            self._start_due()
            if not self.flows:
                return
            self._step_all()
        raise Violation("the kernel does not come to rest")

    def _pass_time(self) -> None:
        self.kernel.now_ns += _ROUND_NS
        if self.kernel.pending.tasks:
            self.kernel.kick_cpus()  # the pulse
        for runner in self.runners:
            runner.slept_rounds += 1
            runner.due = runner.due or runner.slept_rounds >= _LOOK_UP_ROUNDS

    def _check(self) -> None:
        """Check the invariants between steps of the core."""
        for runner in self.runners:
            if runner.channel.is_ours and runner.asked_and_asleep():
                raise Violation(f"the agent of channel {runner.channel.number} sleeps, and has been asked")
        for task in self.kernel.waiting():
            if task.queue is None:
                raise Violation(f"{task} waits, and is on no queue")
        for number, cpu in self.kernel.cpus.items():
            for task in cpu.own.tasks:
                if not task.allowed >> number & 1 and task.cpu != number:
                    raise Violation(f"{task} is on the queue of CPU {number}, where it may not run")

    def _check_told(self) -> None:
        for gtid, numbers in self.kernel.told.items():
            if numbers != list(range(1, 1 + len(numbers))):
                raise Violation(f"gtid {gtid:#x} was told of with the sequence numbers {numbers}")

    def _describe(self) -> str:
        known = {gtid: task for runner in self.runners for gtid, task in runner.agent.tasks.items()}
        lines = []
        for task in self.kernel.waiting():
            a, at = task.agent, known.get(task.agent.gtid)
            word = self.kernel.status_words.raw[a.word]
            lines.append(f"{task} on {task.queue}, which may run on {task.allowed:#x}: seq {a.seq}, state {word.state}")
            lines.append(f"its agent has {vars(at)}" if at is not None else "no agent knows it")
        return "; ".join(lines)


class _Clock:
    """Replaces the module ``time``."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_ns(self) -> int:
        return self._world.kernel.now_ns

    def monotonic(self) -> float:
        return self._world.kernel.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self._world.kernel.now_ns += int(seconds * 1e9)
