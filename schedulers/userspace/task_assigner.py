# SPDX-License-Identifier: Apache-2.0
"""Where each CPU has an agent: who hands the tasks that are new out to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ..agents import AgentPolicySpec
from .policy import AgentPolicy
from .task import Task, Transaction

if TYPE_CHECKING:
    from .agent import Agent


class TaskAssigner(AgentPolicy):
    """Asks the policy's place() for each task that is nobody's yet."""

    name = "task_assigner"
    placed: ClassVar[type[AgentPolicy]]

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent)
        self._place = self.placed(agent, **options).place
        self._new: dict[Task, None] = {}

    @classmethod
    def half(cls, half: AgentPolicySpec) -> AgentPolicySpec:
        """``half`` with a assigner for its policy in the policy's own place."""
        own = {name: getattr(half.agent, name) for name in ("hinted", "options", "watches_cpus")}
        assigner = type("TaskAssigner", (cls,), {"placed": half.agent, "name": half.name, **own})
        return replace(half, agent=assigner)

    def enqueue(self, task: Task) -> None:
        self._new[task] = None

    def dequeue(self, task: Task) -> None:
        self._new.pop(task, None)

    def schedule(self) -> Iterator[Transaction]:
        """Hands out; it commits nothing itself."""
        if not self._new:
            return
        there = tuple(self.agent.agent_cpus())
        for task in list(self._new):
            if cpus := tuple(cpu for cpu in there if task.may_run_on(cpu)):
                del self._new[task]
                self.agent.associate(task, self._place(task, cpus))
        yield from ()
