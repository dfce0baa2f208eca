# SPDX-License-Identifier: Apache-2.0
"""Borrowed turns: a CPU of another enclave runs a task from the enclave's queue, as bpf/core/lending.bpf.c has it."""

from __future__ import annotations

from typing import Any

from ghostbpf.schedulers.agents.task import MessageType

from .events import Events
from .state import Cpu, Steps


class Lending(Events):
    """Events, with one more CPU, ``lent``, that belongs to another enclave: no task is queued for it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lent = self.numbers.stop
        self.cpus[self.lent] = Cpu(self.lent)

    def switch(self, number: int, why: str) -> Steps:
        if number != self.lent:
            yield from super().switch(number, why)
            return
        cpu = self.cpus[number]
        cpu.switching = True
        if cpu.current is None:
            yield from self._begin_turn()
        else:
            yield from self._end_turn(why)
        cpu.switching = False

    def _begin_turn(self) -> Steps:
        """serve_borrower(); the lender's agents are not told."""
        task = next((task for task in self.pending.tasks if not task.locked), None)
        if task is not None:
            self.pending.remove(task)
            task.locked = True
            yield
            yield from self.running(task, self.lent)
            task.locked = False

    def _end_turn(self, why: str) -> Steps:
        cpu = self.cpus[self.lent]
        task = cpu.current
        assert task is not None
        yield from self.lock(task)
        stays = why in ("preempt", "yield")
        task.agent.yielded = why == "yield"
        yield from self.stopping(task, self.lent, sleeps=not stays)
        cpu.current = None
        task.runnable = stays
        if stays:
            yield from self.enqueue(task)
        elif why == "exit":
            task.gone, task.enabled = True, False
            yield from self.tell_gone(task, MessageType.TASK_DEAD)
        task.locked = False
