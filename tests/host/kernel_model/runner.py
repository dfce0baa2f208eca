# SPDX-License-Identifier: Apache-2.0
"""An agent on the model, with the loop that decides when it makes a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ghostbpf.schedulers.agents import AgentPolicySpec

if TYPE_CHECKING:
    from .world import World


class Runner:
    """An agent with its loop: it makes a turn when its ring can be read, and otherwise sleeps."""

    def __init__(self, world: World, spec: AgentPolicySpec, cpu: int | None) -> None:
        self.world = world
        # If the agent timed out, the core would decide, and hide an error of the agent.
        options = {option.field: option.parse(option.default) for option in spec.options}
        values = options | {"timeout_ns": 10**12} | world.values
        self.agent = world.interface.agent(spec, values, cpu)
        self.channel: Any = self.agent._channel
        self.in_turn, self.due = True, True  # its loop begins with a turn
        self.slept_rounds = 0
        self.agent.take_over()
        self.in_turn = False

    def come_back(self) -> None:
        """Take over again, where the agent that took over has left."""
        self.in_turn, self.due = True, True
        self.agent.take_over()
        self.in_turn = False

    @property
    def ring(self) -> Any:
        return self.channel._ring

    def is_due(self) -> bool:
        """Whether its loop makes a turn: the core woke it, or the ring was not empty when it began to wait."""
        return self.due or self.channel.woken

    def turn(self) -> None:
        if self.in_turn or not self.channel.is_ours:
            return
        self.in_turn, self.due, self.channel.woken = True, False, False
        is_due = self.agent.turn()
        self.world.point()
        self.due = is_due or bool(self.ring.records)
        self.in_turn, self.slept_rounds = False, 0

    def asked_and_asleep(self) -> bool:
        """Whether the agent sleeps though the ring has a message that must wake it."""
        kinds = [record[0][6] for record in self.ring.records if record[0] is not None]
        asked = any(self.world.kernel.asks(kind) for kind in kinds)
        return asked and not self.is_due() and not self.in_turn
