# SPDX-License-Identifier: Apache-2.0
"""Topology against ghOSt's tests (tests/topology_test.cc) on its 112-CPU machine, and against this machine.

Its X on a fake sysfs is ``test_x[sysfs]`` here, its CustomX ``test_x[rows]``; what concerns CpuList alone
is in test_cpuset.py. Not ported: UninitializedCpu and UninitializedCpuToString, as there is no invalid Cpu.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.topology import CpuRow, Topology, TopologyError

CPUS, CORES = 112, 56


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def pair(cpu: int, consecutive: bool) -> str:
    """The two CPUs of a core: 0-1, 2-3, ... or 0 with 56, 1 with 57, ..."""
    return f"{cpu & ~1}-{cpu | 1}" if consecutive else f"{cpu % CORES},{cpu % CORES + CORES}"


def node_cpus(node: int, consecutive: bool) -> str:
    return ("0-55", "56-111")[node] if consecutive else ("0-27,56-83", "28-55,84-111")[node]


def fake_sysfs(root: Path, l3: bool = True, consecutive: bool = False) -> Path:
    """ghOSt's test machine: 112 CPUs, 2 threads a core, 2 nodes with an L3 each, or with an empty L3 file."""
    files = {"cpu/online": "0-111", "node/possible": "0-1"}
    for node in range(2):
        cpus = node_cpus(node, consecutive)
        files[f"node/node{node}/cpulist"] = cpus
        for cpu in CpuSet.parse(cpus):
            files[f"cpu/cpu{cpu}/topology/core_cpus_list"] = pair(cpu, consecutive)
            files[f"cpu/cpu{cpu}/cache/index3/shared_cpu_list"] = cpus if l3 else ""
    return write(root, files)


def row(cpu: int, core: int, smt_idx: int, siblings: str, l3: str, node: int) -> CpuRow:
    return CpuRow(id=cpu, core=core, smt_idx=smt_idx, siblings=siblings, l3_siblings=l3, numa_node=node)


def fake_rows(l3: bool = True, consecutive: bool = False) -> list[CpuRow]:
    """The same machine as rows; where siblings are consecutive ghOSt counts the cores, 0 to 55."""
    rows: list[CpuRow] = []
    for cpu in range(CPUS):
        core, thread = divmod(cpu, 2) if consecutive else (cpu % CORES, cpu // CORES)
        node = cpu // CORES if consecutive else cpu // 28 % 2
        cache = node_cpus(node, consecutive) if l3 else ""
        rows.append(row(cpu, core, thread, pair(cpu, consecutive), cache, node))
    return rows


def core_rows(*cores: tuple[str, str, int]) -> list[CpuRow]:
    """The rows of some cores, each given as siblings, L3 siblings and node."""
    return [
        row(cpu, CpuSet.parse(siblings).first, place, siblings, l3, node)
        for siblings, l3, node in cores
        for place, cpu in enumerate(CpuSet.parse(siblings))
    ]


Make = Callable[..., Topology]


@pytest.fixture(params=["sysfs", "rows"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """ghOSt's machine, from its fake sysfs or from rows."""

    def build(**shape: bool) -> Topology:
        if request.param == "sysfs":
            return Topology.from_sysfs(fake_sysfs(tmp_path, **shape))
        return Topology.from_rows(fake_rows(**shape))

    return build


def test_cpu_valid() -> None:
    machine = Topology.from_sysfs()
    assert [machine.cpu(number).id for number in machine.all_cpus] == list(machine.all_cpus)


def test_cpu_numa_node() -> None:
    assert all(cpu.numa_node >= 0 for cpu in Topology.from_sysfs().cpus)


def test_cpu_to_string(make: Make) -> None:
    assert [str(make().cpu(number)) for number in (0, 3, 19)] == ["0", "3", "19"]


def test_topology_num_cpus(make: Make) -> None:
    assert len(make().all_cpus) == make().num_cpus == CPUS
    assert len(Topology.from_sysfs().all_cpus) == Topology.from_sysfs().num_cpus


def test_topology_all_cpus(make: Make) -> None:
    topology = make()
    assert [topology.cpu(number).id for number in range(CPUS)] == list(range(CPUS))
    assert list(topology.all_cpus) == list(range(CPUS))


def test_check_all_cores(make: Make) -> None:
    assert make().all_cores == CpuSet(range(CORES))
    assert make(consecutive=True).all_cores == CpuSet(range(0, CPUS, 2))


def test_check_cores(make: Make) -> None:
    topology = make()
    for core in range(CORES):
        assert topology.cpu(core).core == core
        assert topology.cpu(core + CORES).core == core


def test_check_siblings(make: Make) -> None:
    topology = make()
    for cpu in range(CORES):
        assert topology.cpu(cpu).siblings == CpuSet([cpu, cpu + CORES])
        assert topology.cpu(cpu + CORES).siblings == CpuSet([cpu, cpu + CORES])


def test_check_l3_siblings(make: Make) -> None:
    topology = make()
    for half in (range(28), range(28, 56)):
        expected = CpuSet([*half, *(cpu + CORES for cpu in half)])
        assert all(topology.cpu(cpu).l3_siblings == expected for cpu in expected)


def test_check_empty_l3_siblings(make: Make) -> None:
    topology = make(l3=False)
    assert (topology.num_cpus, topology.consecutive_smt) == (CPUS, False)
    assert not any(cpu.l3_siblings for cpu in topology.cpus)


def test_check_highest_node_idx(make: Make) -> None:
    assert make().highest_node == 1


def test_check_smt_idx(make: Make) -> None:
    topology = make()
    assert topology.smt_count == 2
    assert not topology.consecutive_smt
    for cpu in topology.cpus:
        assert list(cpu.siblings)[cpu.smt_idx] == cpu.id
        assert cpu.smt_idx == (0 if cpu.id < CORES else 1)


def test_consecutive_smt_numbering(make: Make) -> None:
    topology = make(consecutive=True)
    assert topology.smt_count == 2
    assert topology.consecutive_smt
    for cpu in topology.cpus:
        (sibling,) = cpu.siblings - CpuSet([cpu])
        assert abs(cpu.id - sibling) == 1
        assert cpu.smt_idx == cpu.id % 2


def test_custom_consecutive_smt_numbering() -> None:
    topology = Topology.from_rows(fake_rows(consecutive=True))
    assert all(cpu.core == cpu.id // topology.smt_count for cpu in topology.cpus)


def test_bitmap_set_cpu(make: Make) -> None:
    """A Cpu stands for its number in a CpuSet."""
    topology = make()
    cpus = [topology.cpu(number) for number in (5, 20, 87, 94, 100)]
    chosen = CpuSet(cpus)
    assert [cpu for cpu in topology.cpus if cpu in chosen] == cpus
    assert [topology.cpu(number) for number in chosen] == cpus
    assert not chosen - CpuSet(cpus)


def test_iterator_begin(make: Make) -> None:
    assert next(iter(make().all_cpus)) == make().all_cpus.first == 0


def test_cpu_list_to_vector(make: Make) -> None:
    assert [make().cpu(number).id for number in CpuSet([0, 1, 2])] == [0, 1, 2]


def test_cpu_in_node(make: Make) -> None:
    topology = make()
    assert topology.cpus_on_node(0).isdisjoint(topology.cpus_on_node(1))
    assert topology.cpus_on_node(0) | topology.cpus_on_node(1) == topology.all_cpus
    assert str(topology.cpus_on_node(0)) == "0-27,56-83"


def test_cpus_on_node() -> None:
    topology = Topology.from_rows(core_rows(*((str(cpu), str(cpu), cpu) for cpu in range(4))))
    assert [topology.cpus_on_node(node) for node in range(4)] == [CpuSet([cpu]) for cpu in range(4)]


@pytest.mark.parametrize("l3", [True, False])
def test_export_topology(make: Make, l3: bool) -> None:
    assert make(l3=l3).export() == fake_rows(l3=l3)


# Order by distance.


def test_order_keeps_caches_and_cores_together(make: Make) -> None:
    by_core = tuple(cpu for core in range(CORES) for cpu in (core, core + CORES))
    assert make().order(range(CPUS)) == by_core
    assert make(l3=False).order(CpuSet(range(CPUS))) == by_core
    assert make(consecutive=True).order(reversed(range(CPUS))) == tuple(range(CPUS))
    assert make().order([57, 84, 30, 1, 57]) == (1, 57, 84, 30)


def test_order_follows_caches_smaller_than_a_node_and_larger() -> None:
    small = [("0,8", "0,2,8,10", 0), ("1,9", "1,3,9,11", 0), ("2,10", "0,2,8,10", 0), ("3,11", "1,3,9,11", 0)]
    assert Topology.from_rows(core_rows(*small)).order(range(4)) == (0, 2, 1, 3)
    # Two caches that each span both nodes, as with sub-NUMA clustering.
    first = [("0", "0,3", 0), ("3", "0,3", 1)]
    second = [("1", "1-2,4", 0), ("2", "1-2,4", 1), ("4", "1-2,4", 0)]
    assert Topology.from_rows(core_rows(*first, *second)).order(range(5)) == (0, 3, 1, 4, 2)
    # A core without an L3 does not come between two that share one.
    mixed = [("0", "0,2", 0), ("1", "", 0), ("2", "0,2", 0)]
    assert Topology.from_rows(core_rows(*mixed)).order(range(3)) == (1, 0, 2)


def test_neighbours_go_from_nearest_to_farthest(make: Make) -> None:
    near, far = CpuSet.parse("0-27,56-83"), CpuSet.parse("28-55,84-111")
    sibling, others = CpuSet([59]), near - CpuSet([3, 59])
    assert make().neighbours(3) == (sibling, others, CpuSet(), far)
    assert make(l3=False).neighbours(3) == (sibling, CpuSet(), others, far)


def test_neighbours_tell_a_small_cache_from_its_node_and_the_rest() -> None:
    cores = [("0-1", "0-3", 0), ("2-3", "0-3", 0), ("4-5", "4-5", 0), ("6", "6", 1)]
    topology = Topology.from_rows(core_rows(*cores))
    assert [str(ring) for ring in topology.neighbours(0)] == ["1", "2-3", "4-5", "6"]
    assert [str(ring) for ring in topology.neighbours(6)] == ["", "", "", "0-5"]
    for cpu in topology.cpus:
        rings = topology.neighbours(cpu)
        assert sorted(other for ring in rings for other in ring) == list(topology.all_cpus - CpuSet([cpu]))


# Export and rows.


@pytest.mark.parametrize("consecutive", [True, False])
def test_rows_survive_json_in_any_order(make: Make, consecutive: bool) -> None:
    topology = make(consecutive=consecutive)
    rows = json.loads(json.dumps(topology.export()))
    assert Topology.from_rows(reversed(rows)) == topology


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"siblings": "0-1,9"}, "CPU 9 in the siblings of CPU 0 has no row"),
        ({"siblings": "1"}, "CPU 0 is missing from its own siblings 1"),
        ({"siblings": ""}, "CPU 0 is missing from its own siblings"),
        ({"siblings": "0"}, "CPUs 1 and 0 disagree on siblings: 0-1 and 0"),
        ({"l3_siblings": "0"}, "CPUs 1 and 0 disagree on l3_siblings: 0-3 and 0"),
        ({"l3_siblings": ""}, "CPUs 1 and 0 disagree on l3_siblings"),
        ({"l3_siblings": "1-3"}, "CPU 0 is missing from its own l3_siblings 1-3"),
        ({"smt_idx": 1}, "CPU 0 is not thread 1 of 0-1"),
        ({"smt_idx": 2}, "CPU 0 is not thread 2 of 0-1"),
        ({"smt_idx": -2}, "CPU 0 is not thread -2 of 0-1"),
        ({"core": 7}, "CPUs 0-1 are siblings on different cores"),
        ({"numa_node": -1}, "CPU 0 is on node -1 of 0-0"),
        ({"id": 1}, "a CPU is out of order or listed twice"),
    ],
)
def test_rows_of_an_impossible_machine_are_refused(changes: dict[str, Any], message: str) -> None:
    good = core_rows(("0-1", "0-3", 0), ("2-3", "0-3", 0))
    assert Topology.from_rows(good).num_cpus == 4
    bad: list[Any] = [{**good[0], **changes}, *good[1:]]
    with pytest.raises(TopologyError, match=message):
        Topology.from_rows(bad)


def test_two_cores_of_one_name_are_refused() -> None:
    rows = core_rows(("0-1", "", 0), ("2-3", "", 0))
    for each in rows:
        each["core"] = 0
    with pytest.raises(TopologyError, match="core 0 is both 0-1 and 2-3"):
        Topology.from_rows(rows)


def test_incomplete_rows_are_refused() -> None:
    rows = fake_rows()
    del rows[3]["core"]  # type: ignore[misc]
    with pytest.raises(TopologyError, match="lacks 'core'"):
        Topology.from_rows(rows)
    with pytest.raises(TopologyError, match="there are no CPUs"):
        Topology.from_rows([])
