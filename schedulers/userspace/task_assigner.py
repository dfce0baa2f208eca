# SPDX-License-Identifier: Apache-2.0
"""The policy of an enclave's agent where each CPU has its own: it assigns new tasks to the agents of CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, cast

from ..agents import AgentPolicyClass, AgentPolicySpec
from ..agents.task import Task, Transaction
from .agent import Agent
from .policy import AgentPolicy


class TaskAssigner(AgentPolicy):
    """Calls place() of the policy ``assigns_for`` for each task that has no agent yet."""

    name = "task_assigner"
    assigns_for: ClassVar[AgentPolicyClass]

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent)
        self._place = self.assigns_for(agent, **options).place
        self._new: dict[Task, None] = {}

    @classmethod
    def spec_for(cls, spec: AgentPolicySpec) -> AgentPolicySpec:
        """``spec`` with a task assigner in place of its policy's class."""
        shared = {name: getattr(spec.agent, name) for name in ("hinted", "options", "watches_cpus")}
        assigner = type("TaskAssigner", (cls,), {"assigns_for": spec.agent, "name": spec.name, **shared})
        return replace(spec, agent=cast(type[TaskAssigner], assigner))

    def enqueue(self, task: Task) -> None:
        self._new[task] = None

    def dequeue(self, task: Task) -> None:
        self._new.pop(task, None)

    def schedule(self) -> Iterator[Transaction]:
        """Assign what can be assigned; commit nothing."""
        if not self._new:
            return
        agent_cpus = tuple(self.agent.agent_cpus())
        for task in list(self._new):
            if cpus := tuple(cpu for cpu in agent_cpus if task.may_run_on(cpu)):
                del self._new[task]
                self.agent.associate(task, self._place(task, cpus))
        yield from ()
