# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the enclaves that a service has made, and the end of agents that hang."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...loaders.errors import GhostError
from ...schedulers.enclave import Enclave, Enclaves
from ...schedulers.processes import children

#: How long an agent may be timed out until it is replaced, in seconds: a busy machine delays agents for less.
HANGS_S = 5.0


@dataclass(frozen=True)
class Health:
    """What is wrong, by enclave, in words.

    ``lost``: applying the file again makes it well. ``fell_back``: the same policy would fail again.
    ``hanging``: agents that have not decided for HANGS_S, by enclave, with their task.
    """

    lost: dict[int, str] = field(default_factory=dict)
    fell_back: dict[int, str] = field(default_factory=dict)
    hanging: dict[int, int] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.fell_back or self.hanging)

    def __str__(self) -> str:
        words = {id: f"the agent, task {tid}, hangs" for id, tid in self.hanging.items()}
        return "; ".join(
            f"enclave {id}: {what}" for id, what in sorted({**self.lost, **self.fell_back, **words}.items())
        )


class HealthCheck:
    """Looks after the enclaves ``ids``."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids = tuple(ids)
        self._late_since: dict[tuple[int, int], float] = {}

    def look(self, at_s: float) -> Health:
        """What is wrong at ``at_s``, in seconds of any steady clock."""
        health = Health()
        try:
            enclaves = Enclaves.open()
        except GhostError as error:
            return Health(lost=dict.fromkeys(self._ids, str(error)))
        known = () if enclaves is None else enclaves.ids()
        late: dict[tuple[int, int], float] = {}
        for id in self._ids:
            if enclaves is None or id not in known:
                health.lost[id] = "it does not exist any more"
                continue
            with contextlib.suppress(GhostError, OSError):  # it is being changed: the next look tells
                self._look_at(enclaves.get(id), health, late, at_s)
        self._late_since = late
        return health

    def _look_at(self, enclave: Enclave, health: Health, late: dict[tuple[int, int], float], at_s: float) -> None:
        if (why := enclave.fallback) is not None:
            health.fell_back[enclave.id] = str(why)
        elif (agent := enclave.agent) is None:
            return
        elif agent.state == "gone":
            health.lost[enclave.id] = f"its agent is gone: {agent.reason or 'it was killed'}"
        elif agent.state == "timed_out" and agent.tid:  # not one outside of this pid namespace
            key = enclave.id, agent.tid
            late[key] = self._late_since.get(key, at_s)
            if at_s - late[key] >= HANGS_S:
                health.hanging[enclave.id] = agent.tid


def kill(agent: int) -> None:
    """End an agent that hangs, with the agents of CPUs, which are its children: the core decides until another starts.

    SIGTERM would not do: a hanging agent does not get to the end of its turn.
    """
    for pid in [*children(agent), agent]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
