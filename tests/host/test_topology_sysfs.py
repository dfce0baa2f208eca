# SPDX-License-Identifier: Apache-2.0
"""Topology from the sysfs of this machine, and from incomplete ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from ghostbpf.schedulers.cpuset import CpuListError, CpuSet
from ghostbpf.schedulers.topology import Topology, TopologyError


def sysfs(root: Path, files: dict[str, str]) -> Topology:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return Topology.from_sysfs(root)


def groups(topology: Topology) -> list[str]:
    return [str(cpu.siblings) for cpu in topology.cpus]


# This machine.


def test_this_machine_has_the_cpus_that_libc_counts() -> None:
    machine = Topology.from_sysfs()
    assert machine.num_cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert CpuSet(os.sched_getaffinity(0)) <= machine.all_cpus


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu, the second opinion, is not installed")
def test_this_machine_is_the_one_lscpu_sees() -> None:
    command = ["lscpu", "--parse=CPU,CORE,NODE"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    machine = Topology.from_sysfs()
    assert [cpu.id for cpu in machine.cpus] == [int(cpu) for cpu, _, _ in rows]
    assert [cpu.numa_node for cpu in machine.cpus] == [int(node or 0) for _, _, node in rows]
    for cpu, (_, core, _) in zip(machine.cpus, rows, strict=True):
        assert cpu.siblings == CpuSet(int(other) for other, its_core, _ in rows if its_core == core)


def test_this_machine_survives_export() -> None:
    machine = Topology.from_sysfs()
    assert Topology.from_rows(machine.export(), machine.highest_node) == machine


def test_a_topology_is_a_value() -> None:
    machine = Topology.from_sysfs()
    assert hash(machine) == hash(Topology.from_sysfs())
    with pytest.raises(FrozenInstanceError):
        machine.highest_node = 7  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        machine.cpus[0].core = 7  # type: ignore[misc]


# Machines with an incomplete sysfs.


def test_a_machine_that_lists_only_its_cpus(tmp_path: Path) -> None:
    """As under gVisor, or in a container with a masked sysfs."""
    topology = sysfs(tmp_path, {"cpu/online": "0-3"})
    assert groups(topology) == ["0", "1", "2", "3"]
    assert not any(cpu.l3_siblings for cpu in topology.cpus)
    assert (topology.highest_node, topology.cpus_on_node(0)) == (0, topology.all_cpus)
    assert (topology.smt_count, topology.consecutive_smt) == (1, False)
    assert topology.neighbours(2) == (CpuSet(), CpuSet(), CpuSet([0, 1, 3]), CpuSet())


def test_without_a_list_of_online_cpus_the_directories_are_counted(tmp_path: Path) -> None:
    files = {f"cpu/cpu{cpu}/uevent": "" for cpu in (0, 1, 10)} | {"cpu/cpufreq/x": "", "cpu/cpu0x/y": ""}
    assert str(sysfs(tmp_path, files).all_cpus) == "0-1,10"


def test_no_cpus_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="there are no CPUs\nmount -t sysfs sysfs /sys"):
        Topology.from_sysfs(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CpuListError, match='"lots" is not a CPU number'):
        sysfs(tmp_path, {"cpu/online": "0-1", "cpu/cpu0/topology/core_cpus_list": "lots"})


def test_offline_cpus_are_left_out_everywhere(tmp_path: Path) -> None:
    files = {"cpu/online": "0-1,5", "cpu/cpu0/topology/core_cpus_list": "0,4"}
    files |= {"cpu/cpu1/topology/core_cpus_list": "1,5", "cpu/cpu0/cache/index3/shared_cpu_list": "0-7"}
    topology = sysfs(tmp_path, files | {"node/node0/cpulist": "0-3", "node/node1/cpulist": "4-7"})
    assert groups(topology) == ["0", "1,5", "1,5"]
    assert [str(cpu.l3_siblings) for cpu in topology.cpus] == ["0-1,5"] * 3
    assert (topology.num_cpus, topology.cpu(5).core, topology.cpu(5).smt_idx) == (3, 1, 1)
    assert [str(topology.cpus_on_node(node)) for node in (0, 1)] == ["0-1", "5"]


def test_a_cpu_that_goes_offline_meanwhile_breaks_nothing(tmp_path: Path) -> None:
    """The files of CPU 0 still list 1, those of CPU 1 are gone, and those of 3 no longer list 2."""
    files = {"cpu/online": "0-3", "cpu/cpu0/topology/core_cpus_list": "0-1"}
    files |= {"cpu/cpu2/topology/core_cpus_list": "2-3", "cpu/cpu3/topology/core_cpus_list": "3"}
    assert groups(sysfs(tmp_path, files)) == ["0-1", "0-1", "2-3", "2-3"]


def test_siblings_come_from_the_newest_file_there_is(tmp_path: Path) -> None:
    old = {"cpu/online": "0-1", "cpu/cpu0/topology/thread_siblings_list": "0-1"}
    assert groups(sysfs(tmp_path, old)) == ["0-1", "0-1"]
    assert groups(sysfs(tmp_path, {"cpu/cpu0/topology/core_cpus_list": "0"})) == ["0", "1"]


def test_the_l3_is_told_by_its_level_not_its_index(tmp_path: Path) -> None:
    files = {"cpu/online": "0-3"}
    for cpu, cache in ((0, "0-1"), (2, "2-3")):
        for index, level, shared in ((0, 1, f"{cpu}"), (1, 2, f"{cpu}"), (2, 3, cache), (3, 4, "0-3")):
            files[f"cpu/cpu{cpu}/cache/index{index}/level"] = str(level)
            files[f"cpu/cpu{cpu}/cache/index{index}/shared_cpu_list"] = shared
    assert [str(cpu.l3_siblings) for cpu in sysfs(tmp_path, files).cpus] == ["0-1", "0-1", "2-3", "2-3"]


def test_a_node_without_cpus_counts(tmp_path: Path) -> None:
    """As with CXL memory, or a node for hotplug."""
    nodes = {"node/possible": "0-3", "node/node0/cpulist": "0-1", "node/node1/cpulist": ""}
    topology = sysfs(tmp_path, {"cpu/online": "0-1", **nodes})
    assert topology.highest_node == 3
    assert [len(topology.cpus_on_node(node)) for node in range(4)] == [2, 0, 0, 0]
    assert Topology.from_rows(topology.export()).highest_node == 0
    assert Topology.from_rows(topology.export(), highest_node=3) == topology


def test_a_hybrid_machine_has_the_smt_of_its_widest_core(tmp_path: Path) -> None:
    files = {"cpu/online": "0-5", "cpu/cpu4/topology/core_cpus_list": "4-5"}
    topology = sysfs(tmp_path, files)
    assert (topology.smt_count, topology.consecutive_smt, str(topology.all_cores)) == (2, True, "0-4")


def test_missing_cpu_or_node_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    topology = sysfs(tmp_path, {"cpu/online": "0-1,4", "node/possible": "0-1"})
    with pytest.raises(TopologyError, match="CPU 2 is offline or does not exist\nchoose from 0-1,4"):
        topology.cpu(2)
    with pytest.raises(TopologyError, match="CPU 7 is offline"):
        topology.order([0, 7])
    for node in (-1, 2):
        with pytest.raises(TopologyError, match=f"node {node} does not exist\nnodes go from 0 to 1"):
            topology.cpus_on_node(node)
