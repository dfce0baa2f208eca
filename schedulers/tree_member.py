# SPDX-License-Identifier: Apache-2.0
"""An enclave as the root or a leaf of a tree of policies; see trees.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..loaders.errors import GhostError
from .core import Core, constant
from .membership import Membership
from .policy import Policy
from .policy_banks import PolicyBanks


class TreeMember(Membership):
    """One enclave, by ``id``, and what makes it a member of a tree."""

    def __init__(self, core: Core, id: int) -> None:
        super().__init__(core, id)
        self._banks = PolicyBanks(core, id, self._record, self.path)

    @property
    def nr_waiting(self) -> int:
        """In a tree: how many of its tasks wait for a CPU."""
        return self._banks.hierarchy.count_waiting()

    @property
    def tree_record(self) -> Any:
        """The ``struct tree`` of its tree."""
        return self._banks.hierarchy.tree

    def load_tree_layer(self, arbiter: str) -> None:
        """Load what passes on the CPUs of the tree whose root this is; see trees.py."""
        self._banks.hierarchy.load()
        self._banks.hierarchy.cover(0, {})
        self._record.policy[0] = arbiter.encode()

    def set_reach(self, words: Sequence[int]) -> None:
        """In a tree: the CPUs that it may get."""
        self._record.reach = words

    def _members(self) -> list[int]:
        """The enclaves of its tree, the root last; itself alone if it is in none."""
        if not self.tree:
            return [self.id]
        records, free = self.core.enclaves, constant("ENCLAVE_FREE")
        ids = [id for id in range(1, len(records)) if records[id].tree == self.tree and records[id].state != free]
        return [*(id for id in ids if id != self.tree), self.tree]

    def _mark_dying(self) -> None:
        """From now on, it and its tree are to be destroyed. In a tree, every CPU serves the leaves' queues by then."""
        for id in self._members():
            if self.tree:
                self.core.set_stray(id, True)
            self.core.enclaves[id].state = constant("ENCLAVE_DYING")

    def _check_leaf(self, policy: Policy) -> None:
        """Raise GhostError if ``policy`` cannot schedule an enclave of a tree."""
        if self.is_root:
            raise GhostError(
                f"enclave {self.id} is the root of a tree, and runs no tasks",
                hint=f"replace the policy of a leaf; ghostbpf enclave show {self.id} lists them",
            )
        if self.tree and policy.has_agents:
            raise GhostError(
                f"enclave {self.id} is a leaf of tree {self.tree}, and {policy.name} has an agent",
                hint="only policies in BPF can be in a tree: ghostbpf policies",
            )

    def _check_lending(self) -> None:
        """Raise GhostError if it cannot lend or borrow CPUs."""
        if self.tree:
            raise GhostError(
                f"enclave {self.id} belongs to tree {self.tree}, whose CPUs are neither lent nor borrowed",
                hint="the tree's arbiters share its CPUs; see docs/hierarchy.md",
            )

    def _check_destroy(self) -> None:
        """Raise GhostError if it cannot be destroyed by itself."""
        if self.tree and not self.is_root:
            raise GhostError(
                f"enclave {self.id} is a leaf of tree {self.tree}", hint=f"ghostbpf enclave destroy {self.tree}"
            )
