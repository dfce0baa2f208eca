# SPDX-License-Identifier: Apache-2.0
"""Trees of policies, as a file names them: arbiters that share CPUs among their children, and leaves with a policy.

arbiter = "roci"            # the first child that wants a CPU gets it
cpus = "0-3"                # default: all free CPUs

[[child]]
name = "latency"
policy = "biff"
max-cpus = 3                # default: no limit
priority-cpus = "0-1"       # preferred to others; default: none
poke-threshold = "100us"    # the least time between tasks that are preempted for it; default: none
options = { slice = "5ms" }

[[child]]
name = "batch"
arbiter = "prov"            # whole CPUs, by weight
child = [{ name = "a", policy = "rr", weight = 300 }, { name = "b", policy = "rr" }]

[[child]]
policy = "idle"             # has the CPUs that no child wants; need not be named
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..loaders.errors import GhostError
from .cpuset import CpuListError, CpuSet
from .policy import OptionError, Policy, PolicyOptions, duration_ns, find
from .toml_file import FileError, TomlFile

#: The kinds of arbiters; their places are the values of enum arbiter_kind.
ARBITERS = ("roci", "prov")
#: The policy of the CPUs that no leaf wants; the root of each tree is it, so naming it says nothing new.
IDLE = "idle"
DEFAULT_WEIGHT = 100
MAX_WEIGHT = 10000
MAX_LEAVES = 8
MAX_NODES = 16
TREE_DEPTH = 3
MAX_NAME = 31

_CHILD_KEYS = (
    "name",
    "policy",
    "arbiter",
    "options",
    "max-cpus",
    "weight",
    "priority-cpus",
    "poke-threshold",
    "child",
)
_ROOT_KEYS = ("arbiter", "cpus", "child")


class TreeError(FileError):
    """A file with a tree is wrong."""


@dataclass(frozen=True)
class Node:
    """A child of an arbiter: a leaf with ``options`` (a policy with its options), or an arbiter with ``children``.

    ``weight`` is its share below prov; ``max_cpus`` is the most CPUs that it and all below it get, 0 without a limit.
    Each leaf of it prefers ``priority_cpus`` to others, and preempts other leaves' tasks no more often than each
    ``poke_threshold_ns``.
    """

    name: str
    options: PolicyOptions[Policy] | None = None
    arbiter: str = ""
    children: tuple[Node, ...] = ()
    weight: int = DEFAULT_WEIGHT
    max_cpus: int = 0
    priority_cpus: CpuSet = field(default_factory=CpuSet)
    poke_threshold_ns: int = 0

    def walk(self) -> Iterator[Node]:
        """This node, and all below it in order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def paths(self) -> Iterator[tuple[Node, ...]]:
        """The way from this node's child to each leaf, both included; leaves are in order of precedence."""
        for child in self.children:
            if child.options is not None:
                yield (child,)
            for path in child.paths():
                yield (child, *path)


@dataclass(frozen=True)
class TreeConfig:
    """A tree: its root, an arbiter, and its CPUs (None: all that are free)."""

    root: Node
    cpus: CpuSet | None = None

    @property
    def leaves(self) -> list[Node]:
        """The leaves, in order of precedence."""
        return [path[-1] for path in self.root.paths()]


def is_file(name: str) -> bool:
    """Whether ``name`` is that of a file with a tree."""
    return Path(name).suffix == ".toml"


def read(path: str, policies: Mapping[str, Policy]) -> TreeConfig:
    """The tree in file ``path``; raises TreeError, which names the key."""
    return _Reader(TomlFile(path, TreeError), policies).tree()


class _Reader:
    """Checks the document of one file."""

    def __init__(self, file: TomlFile, policies: Mapping[str, Policy]) -> None:
        self._file, self._policies, self._error = file, policies, file.error
        self._tree_cpus: CpuSet | None = None

    def tree(self) -> TreeConfig:
        document = self._file.document
        self._file.check_keys(document, _ROOT_KEYS, "")
        if "cpus" in document:
            self._tree_cpus = self._cpus(document, "cpus")
        root = Node("root", arbiter=self._arbiter(document, ""), children=self._children(document, "", is_root=True))
        leaves, nodes = list(root.paths()), [*root.walk()][1:]
        for number, node in enumerate(nodes):
            if node.name in (other.name for other in nodes[:number]):
                raise self._error("child", f'two children are named "{node.name}"')
        if len(leaves) > MAX_LEAVES or len(nodes) > MAX_NODES:
            raise self._error("child", f"more than {MAX_LEAVES} policies, or more than {MAX_NODES} children in all")
        if max(map(len, leaves)) > TREE_DEPTH:
            raise self._error("child", f"a policy is more than {TREE_DEPTH} levels below the root")
        return TreeConfig(root, self._tree_cpus)

    def _children(self, table: Mapping[str, Any], at: str, *, is_root: bool = False) -> tuple[Node, ...]:
        key, children = f"{at}child", table.get("child", [])
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            raise self._error(key, "not an array of tables", "write each child as [[child]]")
        for number, child in enumerate(children):
            if child.get("policy") == IDLE and not (is_root and number == len(children) - 1 > 0):
                raise self._error(
                    f"{key}[{number}].policy",
                    "idle wants every CPU: children after it would get none",
                    "make it the last child of the root, or leave it out",
                )
        nodes = [self._node(child, f"{key}[{n}].") for n, child in enumerate(children) if child.get("policy") != IDLE]
        if not nodes:
            raise self._error(key, "an arbiter needs at least one child with a policy", "add a [[child]]")
        return tuple(nodes)

    def _node(self, table: Mapping[str, Any], at: str) -> Node:
        self._file.check_keys(table, _CHILD_KEYS, at)
        if ("policy" in table) == ("arbiter" in table):
            raise self._error(at.rstrip("."), "a child has either a policy or an arbiter")
        name = table.get("name", table.get("policy", table.get("arbiter")))
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME:
            raise self._error(f"{at}name", f"not a name of 1 to {MAX_NAME} bytes")
        node = Node(
            name,
            weight=self._number(table, "weight", at, DEFAULT_WEIGHT, 1, MAX_WEIGHT),
            max_cpus=self._number(table, "max-cpus", at, 0, 1, 1024),
            priority_cpus=self._priority_cpus(table, at),
            poke_threshold_ns=self._duration(table, "poke-threshold", at),
        )
        if "policy" in table:
            if "child" in table:
                raise self._error(f"{at}child", "a child with a policy has no children of its own")
            return replace(node, options=self._options(table, at))
        if "options" in table:
            raise self._error(f"{at}options", "an arbiter has no options")
        return replace(node, arbiter=self._arbiter(table, at), children=self._children(table, at))

    def _options(self, table: Mapping[str, Any], at: str) -> PolicyOptions[Policy]:
        name, options = table["policy"], table.get("options", {})
        if not isinstance(name, str):
            raise self._error(f"{at}policy", "not a name")
        try:
            policy = find(name, self._policies)
        except GhostError as error:
            raise self._error(f"{at}policy", str(error), error.hint) from None
        if policy.has_agents:
            bpf = ", ".join(sorted(one for one in self._policies if not self._policies[one].has_agents))
            raise self._error(
                f"{at}policy", f"{name} has an agent: only policies in BPF can be in a tree", f"choose from: {bpf}"
            )
        if not isinstance(options, dict):
            raise self._error(f"{at}options", "not a table", 'write for example options = { slice = "5ms" }')
        try:
            return policy.parse({option: str(text) for option, text in options.items()})
        except OptionError as error:
            raise self._error(f"{at}options" + (f".{error.option}" if error.option else ""), str(error)) from None

    def _arbiter(self, table: Mapping[str, Any], at: str) -> str:
        kind = table.get("arbiter")
        if kind not in ARBITERS:
            shown = f'there is no arbiter "{kind}"' if "arbiter" in table else "it is missing"
            raise self._error(f"{at}arbiter", shown, f"choose from: {', '.join(ARBITERS)}")
        return str(kind)

    def _cpus(self, table: Mapping[str, Any], path: str) -> CpuSet:
        """The CPUs of the key at the end of ``path``."""
        key = path.rpartition(".")[2]
        try:
            cpus = CpuSet.parse(table[key]) if isinstance(table[key], str) else CpuSet()
        except CpuListError as error:
            raise self._error(path, str(error)) from None
        if not cpus:
            raise self._error(path, "not a list of CPUs", f'write for example {key} = "0-3"')
        return cpus

    def _priority_cpus(self, table: Mapping[str, Any], at: str) -> CpuSet:
        if "priority-cpus" not in table:
            return CpuSet()
        cpus = self._cpus(table, f"{at}priority-cpus")
        if self._tree_cpus is not None and (beyond := cpus - self._tree_cpus):
            raise self._error(f"{at}priority-cpus", f"CPU {beyond} is not among the tree's CPUs, {self._tree_cpus}")
        return cpus

    def _duration(self, table: Mapping[str, Any], key: str, at: str) -> int:
        if key not in table:
            return 0
        try:
            return duration_ns(str(table[key]))
        except ValueError as error:
            raise self._error(f"{at}{key}", str(error)) from None

    def _number(self, table: Mapping[str, Any], key: str, at: str, default: int, least: int, most: int) -> int:
        value = table.get(key, default)
        if key in table and (type(value) is not int or not least <= value <= most):
            raise self._error(f"{at}{key}", f"not a number from {least} to {most}")
        return int(value)
