# SPDX-License-Identifier: Apache-2.0
"""The two banks of an enclave's policies: one is live, and its successor is loaded into the other beside it.

One store to the enclave's ``bank`` makes the other policy live: there is no instant without a policy, and a loader
killed before that store leaves the old policy in charge.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from ..loaders.maps import Map
from . import agents
from .core import Core, constant, has_fallen_back, live_bank, synchronize_rcu
from .hierarchy_layer import HierarchyLayer
from .lending import LendingLayer
from .pins import make_private
from .policy import LoadedPolicy, Policy, PolicyOptions


class PolicyBanks:
    """The policy banks of enclave ``id``; ``record`` is its ``struct enclave``, ``path`` its directory in bpffs."""

    def __init__(self, core: Core, id: int, record: Any, path: Path) -> None:
        self._core, self._id, self._record, self._path = core, id, record, path
        #: What lends and borrows CPUs, between the core and the policy.
        self.lending = LendingLayer(core, id, record, path)
        #: What gives CPUs to the leaves of a tree, between the core and the policy.
        self.hierarchy = HierarchyLayer(core, id, record)

    @property
    def live(self) -> int:
        """The bank whose policy schedules the enclave, or did before the core replaced it by the built-in FIFO."""
        return live_bank(self._record)

    def load(self, options: PolicyOptions[Policy]) -> LoadedPolicy:
        """Load a policy for this enclave, into no bank yet."""
        policy, values = options.policy, options.values
        compiled = policy.compile()
        if not policy.is_hinted(compiled):
            return policy.load(compiled, self._id, self._core.maps, values)
        # The hint table outlives its policy: applications have it mapped.
        from ..hints import Hints

        hints = self._path / "hints"
        if not hints.exists():
            make_private(self._path)
            Hints.create(hints).close()
        with Map.open(hints) as table:
            return policy.load(compiled, self._id, {**self._core.maps, "hints": table}, values)

    def fill(self, bank: int, loaded: LoadedPolicy) -> None:
        """Put a loaded policy into ``bank`` and pin its maps."""
        self.empty(bank)
        self._record.policy[bank] = loaded.policy.name.encode()
        self._record.queues[bank] = loaded.policy.queues
        self._record.agents[bank] = loaded.policy.has_agents
        for op, program in loaded.programs.items():
            self._core.slots[op][self._slot(bank)] = program.fd
        make_private(self._directory(bank))
        for name, held in loaded.maps.items():
            held.pin(self._directory(bank) / name)
        self.lending.cover(bank, loaded.programs)
        self.hierarchy.cover(bank, loaded.programs)

    def empty(self, bank: int) -> None:
        """Remove the policy of ``bank``."""
        for slot in self._core.slots.values():
            with contextlib.suppress(KeyError):
                del slot[self._slot(bank)]
        self.lending.empty(bank)
        self.hierarchy.empty(bank)
        shutil.rmtree(self._directory(bank), ignore_errors=True)

    def make_live(self, bank: int, *, fall_back: bool = False) -> None:
        """Replace the live policy by that of ``bank``, or by the FIFO that had replaced that (``fall_back``)."""
        if self._record.queues[1 - bank] and not all(self._record.agents):
            self._record.draining |= constant("DRAINING_QUEUES")
        self._record.policy_since_ns = time.monotonic_ns()
        slots = bank | (constant("FELL_BACK") if fall_back else 0)
        self._record.bank = slots * constant("BOTH_HALVES")

    def tidy(self) -> None:
        """Remove what the live policy does not use: rests of its predecessors, or of a loader that was killed."""
        if self._directory(1 - self.live).exists():
            self.empty(1 - self.live)
        if (not self._record.agents[self.live] or has_fallen_back(self._record)) and agents.has_pins(self._id):
            self.forget_agents()
        self.lending.tidy()
        if self._record.draining:
            self._finish_draining()

    def forget_agents(self) -> None:
        """Dismiss the enclave's agents and remove what they share."""
        self._core.set_release(self._id)
        agents.forget(self._id)
        self._record.spinner = 0

    def _finish_draining(self) -> None:
        # Without a grace period, programs of the previous policy, or ops that know the former CPUs, may still queue
        # tasks: the core goes on draining.
        if synchronize_rcu():
            self._core.drain(self._id)
            self._record.draining = 0

    def _directory(self, bank: int) -> Path:
        return self._path / f"policy_{bank}"

    def _slot(self, bank: int) -> int:
        return self._id * 2 + bank
