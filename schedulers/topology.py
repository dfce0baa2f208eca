# SPDX-License-Identifier: Apache-2.0
"""Which CPUs share a core, a last-level cache and a memory node.

    >>> topology = Topology.from_sysfs()
    >>> smt, l3, node, rest = topology.neighbours(0)

The interface is ghOSt's (lib/topology.h), with two differences: it has online CPUs only, so their numbers may have
gaps, and a sysfs with missing files is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, index
from pathlib import Path
from typing import SupportsIndex, TypedDict

from ..loaders.errors import GhostError
from .cpuset import CpuSet


class TopologyError(GhostError, ValueError):
    """The CPUs described cannot exist, or the CPU requested is not among them."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}\n{hint}")  # part of the message, as in CpuListError


class CpuRow(TypedDict):
    """A Cpu as plain data for JSON; the two sets are cpulists such as ``0,56``."""

    id: int
    core: int
    smt_idx: int
    siblings: str
    l3_siblings: str
    numa_node: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU; it can be used in place of its number (``cpu in cpus``, ``topology.cpu(cpu)``).

    ``siblings`` are the hardware threads of its core, including itself, and ``smt_idx`` is its index among them.
    ``core`` identifies the core: from sysfs, it is the first sibling. ``l3_siblings`` is empty without L3.
    """

    id: int
    core: int
    smt_idx: int
    siblings: CpuSet
    l3_siblings: CpuSet
    numa_node: int

    def __index__(self) -> int:
        return self.id

    def __str__(self) -> str:
        return str(self.id)


@dataclass(frozen=True)
class Topology:
    """The CPUs of one machine, in ascending order.

    ``highest_node`` includes nodes without CPUs. Raises TopologyError if the CPUs contradict each other.
    """

    cpus: tuple[Cpu, ...]
    highest_node: int

    @classmethod
    def from_sysfs(cls, root: Path = Path("/sys/devices/system")) -> Topology:
        """This machine's online CPUs, or those of a copy of its sysfs.

        Without topology files each CPU is its own core, without cache files there is no L3, and without node files
        every CPU is on node 0. Raises TopologyError if there are no CPUs, CpuListError for a malformed file.
        """
        online = CpuSet.parse(_read(root / "cpu/online")) or _cpu_directories(root / "cpu")
        threads = _partition(online, lambda cpu: _thread_siblings(root / f"cpu/cpu{cpu}/topology"))
        l3 = _partition(online, lambda cpu: _l3_siblings(root / f"cpu/cpu{cpu}/cache"))
        nodes: dict[int, int] = {}
        for path in root.glob("node/node[0-9]*/cpulist"):
            nodes |= dict.fromkeys(CpuSet.parse(_read(path)), int(path.parent.name.removeprefix("node")))

        cpus = []
        for cpu in online:
            siblings = threads.get(cpu, CpuSet([cpu]))
            place = list(siblings).index(cpu)
            cpus.append(Cpu(cpu, siblings.first, place, siblings, l3.get(cpu, CpuSet()), nodes.get(cpu, 0)))
        # Node lists have the format of CPU lists.
        possible = CpuSet.parse(_read(root / "node/possible"))
        return cls(tuple(cpus), max([*possible, *(cpu.numa_node for cpu in cpus)], default=0))

    @classmethod
    def from_rows(cls, rows: Iterable[CpuRow], highest_node: int | None = None) -> Topology:
        """The topology that ``rows``, in any order, describe.

        ``highest_node`` defaults to that of the rows. Raises TopologyError and CpuListError.
        """
        cpus = []
        for row in rows:
            try:
                siblings, l3 = CpuSet.parse(row["siblings"]), CpuSet.parse(row["l3_siblings"])
                cpus.append(Cpu(row["id"], row["core"], row["smt_idx"], siblings, l3, row["numa_node"]))
            except KeyError as error:
                raise TopologyError(f"the CPU row {row} lacks {error}", _ROWS) from None
        cpus.sort(key=attrgetter("id"))
        if highest_node is None:
            highest_node = max((cpu.numa_node for cpu in cpus), default=0)
        return cls(tuple(cpus), highest_node)

    def export(self) -> list[CpuRow]:
        """The rows that ``from_rows`` reads back, by ascending CPU."""
        return [
            CpuRow(
                id=cpu.id,
                core=cpu.core,
                smt_idx=cpu.smt_idx,
                siblings=str(cpu.siblings),
                l3_siblings=str(cpu.l3_siblings),
                numa_node=cpu.numa_node,
            )
            for cpu in self.cpus
        ]

    def __post_init__(self) -> None:
        if not self.cpus:
            raise TopologyError("there are no CPUs", "mount -t sysfs sysfs /sys")
        if any(before.id >= after.id for before, after in zip(self.cpus, self.cpus[1:], strict=False)):
            raise TopologyError("a CPU is out of order or listed twice", "list each once, in ascending order")
        core_of: dict[int, CpuSet] = {}
        for cpu in self.cpus:
            self._check_group(cpu, "siblings")
            if cpu.l3_siblings:
                self._check_group(cpu, "l3_siblings")
            if not 0 <= cpu.smt_idx < len(cpu.siblings) or list(cpu.siblings)[cpu.smt_idx] != cpu.id:
                raise TopologyError(f"CPU {cpu} is not thread {cpu.smt_idx} of {cpu.siblings}", _ROWS)
            if core_of.setdefault(cpu.core, cpu.siblings) != cpu.siblings:
                raise TopologyError(f"core {cpu.core} is both {core_of[cpu.core]} and {cpu.siblings}", _ROWS)
            if cpu.core != self.cpu(cpu.siblings.first).core:
                raise TopologyError(f"CPUs {cpu.siblings} are siblings on different cores", _ROWS)
            if not 0 <= cpu.numa_node <= self.highest_node:
                raise TopologyError(f"CPU {cpu} is on node {cpu.numa_node} of 0-{self.highest_node}", _ROWS)

    def _check_group(self, cpu: Cpu, name: str) -> None:
        group: CpuSet = getattr(cpu, name)
        if unknown := group - self.all_cpus:
            raise TopologyError(f"CPU {unknown} in the {name} of CPU {cpu} has no row", _ROWS)
        if cpu not in group:
            raise TopologyError(f"CPU {cpu} is missing from its own {name} {group}", _ROWS)
        for other in group:
            if (theirs := getattr(self.cpu(other), name)) != group:
                raise TopologyError(f"CPUs {cpu} and {other} disagree on {name}: {group} and {theirs}", _ROWS)

    @cached_property
    def _by_id(self) -> dict[int, Cpu]:
        return {cpu.id: cpu for cpu in self.cpus}

    @cached_property
    def all_cpus(self) -> CpuSet:
        """Every CPU's number."""
        return CpuSet(self.cpus)

    @cached_property
    def all_cores(self) -> CpuSet:
        """One CPU for each core, its first."""
        return CpuSet(cpu.siblings.first for cpu in self.cpus)

    @property
    def num_cpus(self) -> int:
        """The number of CPUs; with offline CPUs, their numbers may go higher."""
        return len(self.cpus)

    @cached_property
    def smt_count(self) -> int:
        """Hardware threads of the widest core; on a hybrid machine some cores have fewer."""
        return max(len(cpu.siblings) for cpu in self.cpus)

    @cached_property
    def consecutive_smt(self) -> bool:
        """True if siblings are numbered consecutively (0-1, 2-3, ...); False otherwise, and without SMT."""
        return self.smt_count > 1 and all("," not in str(cpu.siblings) for cpu in self.cpus)

    def cpu(self, number: SupportsIndex) -> Cpu:
        """The CPU with that number; TopologyError if there is none."""
        try:
            return self._by_id[index(number)]
        except KeyError:
            message = f"CPU {index(number)} is offline or does not exist"
            raise TopologyError(message, f"choose from {self.all_cpus}") from None

    def cpus_on_node(self, node: int) -> CpuSet:
        """The CPUs of a NUMA node, which may have memory only; TopologyError if there is no such node."""
        if not 0 <= node <= self.highest_node:
            raise TopologyError(f"node {node} does not exist", f"nodes go from 0 to {self.highest_node}")
        return CpuSet(cpu for cpu in self.cpus if cpu.numa_node == node)

    def order(self, cpus: Iterable[SupportsIndex]) -> tuple[int, ...]:
        """The CPUs sorted by L3, and within an L3 by core."""
        return tuple(sorted(CpuSet(cpus), key=self._position))

    def _position(self, number: int) -> tuple[int, int, int, int, int]:
        cpu = self.cpu(number)
        cache = cpu.l3_siblings.first if cpu.l3_siblings else -1
        # The cache's node before the CPU's own, as one L3 may span nodes: kernel commit 1340ccfa9a9a
        # ("x86,sched: Allow topologies where NUMA nodes share an LLC").
        cache_node = cpu.numa_node if cache < 0 else self.cpu(cache).numa_node
        return cache_node, cache, cpu.numa_node, cpu.siblings.first, cpu.id

    def neighbours(self, cpu: SupportsIndex) -> tuple[CpuSet, CpuSet, CpuSet, CpuSet]:
        """The other CPUs, each once, from nearest to farthest: same core, same L3, same node, the rest."""
        here = self.cpu(cpu)
        core = here.siblings - CpuSet([here])
        cache = here.l3_siblings - here.siblings
        node = self.cpus_on_node(here.numa_node) - here.l3_siblings - here.siblings
        return core, cache, node, self.all_cpus - here.siblings - cache - node


_ROWS = "compare with the rows of this machine: Topology.from_sysfs().export()"


def _read(path: Path) -> str:
    # A file that the machine lacks, or that goes with a CPU that goes offline, reads as empty.
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cpu_directories(path: Path) -> CpuSet:
    names = (entry.name.removeprefix("cpu") for entry in path.glob("cpu[0-9]*"))
    return CpuSet(int(name) for name in names if name.isdigit())


def _thread_siblings(path: Path) -> CpuSet:
    # Since kernel commit 2e4c54dac7b3 ("topology: Create core_cpus and die_cpus sysfs attributes") (in v5.3)
    # the file is core_cpus_list. Before that, it is thread_siblings_list.
    return CpuSet.parse(_read(path / "core_cpus_list") or _read(path / "thread_siblings_list"))


def _l3_siblings(path: Path) -> CpuSet:
    # The index is not the cache level: without a split L1, or with an L4, index3 is not the L3.
    for cache in path.glob("index[0-9]*"):
        if (_read(cache / "level") or cache.name.removeprefix("index")) == "3":
            return CpuSet.parse(_read(cache / "shared_cpu_list"))
    return CpuSet()


def _partition(cpus: CpuSet, group_of: Callable[[int], CpuSet]) -> dict[int, CpuSet]:
    """Each CPU's group, read from one member only, so that groups do not overlap while CPUs come and go."""
    groups: dict[int, CpuSet] = {}
    left = cpus
    for cpu in cpus:
        if cpu in left and (group := group_of(cpu) & left):
            groups |= dict.fromkeys(group, group)
            left -= group
    return groups


def nr_cpu_words() -> int:
    """How many u64 words hold a bit for each possible CPU of this machine."""
    possible = CpuSet.parse(_read(Path("/sys/devices/system/cpu/possible")))
    return max(possible) // 64 + 1
