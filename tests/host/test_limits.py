# SPDX-License-Identifier: Apache-2.0
"""CPU limits of cgroups: those of a cgroup and of its ancestors, from the files of a tree."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ghostbpf.schedulers import limits
from ghostbpf.schedulers.limits import Limit
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.caveats import applied_settings


def make(root: Path, cgroup: str, **files: str) -> Path:
    """A cgroup's directory with the files of a cgroup without limits, and with ``files``."""
    directory = root / cgroup.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    there = {"cpu_max": "max 100000", "cpu_weight": "100", "cpu_idle": "0", "cpu_stat": "usage_usec 1"} | files
    for name, value in there.items():
        (directory / name.replace("_", ".", 1)).write_text(f"{value}\n")
    return directory


def test_cgroups_without_a_limit_have_none(tmp_path: Path) -> None:
    make(tmp_path, "/a")
    make(tmp_path, "/a/b")
    (tmp_path / "a/no controller").mkdir()
    for cgroup in ("/a", "/a/b", "/a/no controller", "/", "/nowhere"):
        assert list(limits.at_and_above(cgroup, tmp_path)) == []


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        ({"cpu_max": "10000 100000"}, ("cpu.max 10000 100000",)),
        ({"cpu_weight": "1"}, ("cpu.weight 1",)),
        ({"cpu_weight": "10000"}, ("cpu.weight 10000",)),
        ({"cpu_idle": "1", "cpu_weight": "0"}, ("cpu.idle 1",)),
        ({"cpu_max": "500000 100000", "cpu_weight": "50"}, ("cpu.max 500000 100000", "cpu.weight 50")),
        ({"cpu_max": "100000 100000", "cpu_weight": "100"}, ("cpu.max 100000 100000",)),
    ],
)
def test_quota_weight_and_idle_are_limits(tmp_path: Path, files: dict[str, str], settings: tuple[str, ...]) -> None:
    make(tmp_path, "/a", **files)
    assert list(limits.at_and_above("/a", tmp_path)) == [Limit("/a", settings)]


def test_limits_of_ancestors_count_nearest_first(tmp_path: Path) -> None:
    make(tmp_path, "/", cpu_max="200000 100000")  # the first cgroup of a cgroup namespace
    make(tmp_path, "/slice", cpu_weight="20")
    make(tmp_path, "/slice/middle")
    make(tmp_path, "/slice/middle/leaf", cpu_max="20000 100000")
    make(tmp_path, "/slice/beside", cpu_idle="1")
    found = list(limits.at_and_above("/slice/middle/leaf", tmp_path))
    assert [limit.cgroup for limit in found] == ["/slice/middle/leaf", "/slice", "/"]
    assert str(found[0]) == "cpu.max 20000 100000 of cgroup /slice/middle/leaf"
    every = {limit.cgroup for limit in limits.everywhere(tmp_path)}
    assert every == {"/", "/slice", "/slice/middle/leaf", "/slice/beside"}


def test_cgroup_outside_the_namespace_names_no_directory_above_the_root(tmp_path: Path) -> None:
    make(tmp_path, "/outside", cpu_weight="1")
    root = make(tmp_path, "/root", cpu_weight="7")
    assert list(limits.at_and_above("/../outside", root)) == [Limit("/", ("cpu.weight 7",))]


def test_ended_task_has_no_limits() -> None:
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    assert limits.of_task(pid) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_hold_under_the_policies_that_weigh_cgroups(policy: str) -> None:
    enclave = SimpleNamespace(policy=policy, applies_cgroup_limits=True)
    weights = {"cpu.weight", "cpu.idle"} if policy in ("cfs", "cfs_bpf") else set()
    assert applied_settings(enclave) == {"cpu.max", *weights}  # type: ignore[arg-type]
