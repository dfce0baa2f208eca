# SPDX-License-Identifier: Apache-2.0
"""Trees of policies: enclaves that share CPUs, which BPF programs pass on by demand; see bpf/core/hierarchy.bpf.c.

    with Enclaves.create() as enclaves:
        root = trees.create(enclaves, hierarchy.read("tree.toml", POLICIES))
    latency, batch = trees.leaves(root)
    Enclaves.find(latency.enclave).add(tid)

A tree is one enclave, the root, with the CPUs that are idle, and one enclave for each leaf. The store of ``nr_leaves``
makes it complete: a tree without it, whose loader was killed, is destroyed by the next loader.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..loaders.errors import GhostError
from .core import constant, text
from .cpuset import CpuSet
from .enclave import Enclave, Enclaves
from .enclave_view import EnclaveView
from .hierarchy import ARBITERS, Node, TreeConfig


@dataclass(frozen=True)
class Leaf:
    """A leaf of a tree now, and what happened to it since the tree was made.

    ``demand`` is the number of tasks that run or wait. ``grants`` counts the CPUs that it got, ``preemptions`` those of
    them that ran another leaf's task, and ``turns`` those that it got because a task of it starved. ``self_preempts``
    counts the tasks that left another CPU for one of ``priority_cpus``, and ``pokes_held`` the interruptions that
    ``poke_threshold_ns`` forbade.
    """

    enclave: int
    name: str
    policy: str
    granted: CpuSet
    demand: int
    grants: int
    preemptions: int
    turns: int
    self_preempts: int
    pokes_held: int
    weight: int
    max_cpus: int
    priority_cpus: CpuSet
    poke_threshold_ns: int


def create(enclaves: Enclaves, config: TreeConfig) -> Enclave:
    """Make the tree; returns its root. The caller holds the lock of Enclaves.create(). Raises what new() raises."""
    cpus = enclaves._free_cpus() if config.cpus is None else config.cpus
    enclaves._check_cpus(cpus)
    for node in config.root.walk():
        if beyond := node.priority_cpus - cpus:
            raise GhostError(
                f'child "{node.name}" prefers CPU {beyond}, and the tree has CPU {cpus}',
                hint="name the tree's CPUs with cpus, or others with priority-cpus",
            )
    root = enclaves.new_in_tree(0, cpus, None, 0)
    try:
        _fill(enclaves, root, cpus, config)
    except BaseException:
        root.destroy()
        raise
    return root


@contextlib.contextmanager
def temporary(
    config: TreeConfig,
    *,
    keep_stats: bool = True,
    keep: bool = False,
    runnable_timeout_ns: int | None = None,
    block: Collection[signal.Signals] = (),
) -> Iterator[Enclave]:
    """The tree for the block, and afterwards with ``keep``; the arguments are those of Enclaves.temporary()."""
    with Enclaves.create(keep_stats=keep_stats) as enclaves:
        signal.pthread_sigmask(signal.SIG_BLOCK, block)
        root = create(enclaves, config)
        for leaf in leaves(root) if runnable_timeout_ns is not None else ():
            Enclave(root.core, leaf.enclave).set_runnable_timeout(runnable_timeout_ns or 0)
    try:
        yield root
    finally:
        if not keep and root.core.attached:
            Enclaves._destroy(root)


def leaves(root: EnclaveView) -> list[Leaf]:
    """The leaves of the tree with this root, in order of precedence."""
    core = root.core
    record = Enclave(core, root.id).tree_record
    found = []
    for leaf in list(record.leaves)[: record.nr_leaves]:
        enclave = Enclave(core, leaf.enclave)
        node = record.nodes[max(leaf.path)]
        running = sum(core.cpus[cpu].running == enclave.id for cpu in enclave.cpus)
        found.append(
            Leaf(
                enclave=enclave.id,
                name=text(leaf.name),
                policy=enclave.policy,
                granted=enclave.granted,
                demand=running + enclave.nr_waiting,
                grants=int(leaf.grants),
                preemptions=int(leaf.preemptions),
                turns=int(leaf.turns),
                self_preempts=int(leaf.self_preempts),
                pokes_held=int(leaf.pokes_held),
                weight=int(node.weight),
                max_cpus=int(node.max_cpus) % constant("NO_CPU_LIMIT"),
                priority_cpus=CpuSet.from_words(leaf.priority),
                poke_threshold_ns=int(leaf.poke_threshold_ns),
            )
        )
    return found


def _fill(enclaves: Enclaves, root: Enclave, cpus: CpuSet, config: TreeConfig) -> None:
    root.load_tree_layer(config.root.arbiter)
    record = root.tree_record
    words = cpus.words(constant("CPU_WORDS"))
    root.set_reach(words)
    nodes = [*config.root.walk()][1:]
    record.nodes[0].max_cpus = constant("NO_CPU_LIMIT")
    for number, node in enumerate(nodes, 1):
        _fill_node(record.nodes[number], node)
    # By identity: two nodes may be equal.
    numbers = {id(node): number for number, node in enumerate(nodes, 1)}
    paths = list(config.root.paths())
    made = []
    for number, path in enumerate(paths):
        _fill_preference(record.leaves[number], path)
        made.append(enclaves.new_in_tree(root.id, cpus, path[-1].options, number + 1))
        _fill_leaf(record.leaves[number], made[-1].id, path[-1].name, [numbers[id(node)] for node in path])
    _fill_leaf(record.leaves[constant("MAX_LEAVES")], root.id, "", [])
    for a, b in itertools.permutations(range(len(paths)), 2):
        ours = [config.root, *paths[a]]
        level = next(level for level, (x, y) in enumerate(zip(paths[a], paths[b], strict=False)) if x is not y)
        parting = record.partings[a * constant("LEAF_PLACES") + b]
        parting.mine, parting.theirs = numbers[id(paths[a][level])], numbers[id(paths[b][level])]
        parting.kind = ARBITERS.index(ours[level].arbiter)
    for one in made:
        one.set_reach(words)
    record.nr_leaves = len(made)


def _fill_node(record: Any, node: Node) -> None:
    record.granted, record.weight = 0, node.weight
    record.max_cpus = node.max_cpus or constant("NO_CPU_LIMIT")


def _fill_leaf(record: Any, enclave: int, name: str, path: Sequence[int]) -> None:
    record.enclave, record.name = enclave, name.encode()
    record.grants = record.preemptions = record.turns = record.turn_at = 0
    record.self_preempts = record.poked_at = record.pokes_held = 0
    record.path = [*path, *[0] * (len(record.path) - len(path))]


def _fill_preference(record: Any, path: Sequence[Node]) -> None:
    """What holds for the leaf at the end of ``path``: its own keys, or those of the nearest arbiter above it."""
    priority = next((node.priority_cpus for node in reversed(path) if node.priority_cpus), CpuSet())
    record.priority = priority.words(constant("CPU_WORDS"))
    record.poke_threshold_ns = next((node.poke_threshold_ns for node in reversed(path) if node.poke_threshold_ns), 0)
