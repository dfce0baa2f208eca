# SPDX-License-Identifier: Apache-2.0
"""CPU limits of cgroups, in enclaves and in the fair class of the same machine, as cpu.stat counts the CPU time.

Quotas of 10, 25 and 50 % of a CPU, at the same time, each on a CPU of its own; and, under policies that know weights of
cgroups, weights of 100, 400 and 1600 on one CPU:

    ghostbpf vm -- python3 -m ghostbpf.experiments.cgroup_limits biff fifo_centralized
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..schedulers.cgroups import mount_point
from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.registry import POLICIES

_PERIOD_US = 100_000
_PERCENT = (10, 25, 50)
_WEIGHTS = (100, 400, 1600)
_SECONDS = 10.0
#: How long tasks run before they are measured.
_WARM_UP_S = 1.0


def main(names: Sequence[str]) -> int:
    """Print JSON lines for EEVDF and for each policy in ``names``: the CPU time of each cgroup, in percent of a CPU."""
    quotas = {f"{percent} %": f"{percent * _PERIOD_US // 100} {_PERIOD_US}" for percent in _PERCENT}
    _compare("cpu.max", quotas, range(1, 1 + len(quotas)), names)
    weights = {f"weight {weight}": f"{weight}" for weight in _WEIGHTS}
    _compare("cpu.weight", weights, [1] * len(weights), [name for name in names if POLICIES[name].weighs_cgroups])
    return 0


def _compare(setting: str, values: Mapping[str, str], cpus: Sequence[int], names: Sequence[str]) -> None:
    """A process spins in each cgroup, bound to its CPU of ``cpus``; ``values`` of ``setting`` are by what to print."""
    with cgroups(setting, [*values.values()]) as groups, _spinners(groups, cpus) as pids:
        print(json.dumps({"scheduler": "EEVDF", **_measure(groups, values)}), flush=True)
        for name in names:
            with Enclaves.temporary(POLICIES[name], CpuSet(cpus)) as enclave:
                _join(enclave, pids)
                print(json.dumps({"scheduler": name, **_measure(groups, values)}), flush=True)


@contextlib.contextmanager
def cgroups(setting: str, values: Sequence[str]) -> Iterator[list[Path]]:
    """A cgroup for each value of ``setting``, for the block; raises GhostError without cgroup v2."""
    root = mount_point()
    (root / "cgroup.subtree_control").write_text("+cpu", encoding="utf-8")
    groups = [root / f"ghostbpf-limit-{number}" for number in range(len(values))]
    for value, group in zip(values, groups, strict=True):
        group.mkdir()
        (group / setting).write_text(value, encoding="utf-8")
    try:
        yield groups
    finally:
        for group in groups:
            group.rmdir()


@contextlib.contextmanager
def _spinners(groups: Sequence[Path], cpus: Sequence[int]) -> Iterator[list[int]]:
    """A process that spins in each cgroup, bound to its CPU."""
    pids = []
    try:
        for group, cpu in zip(groups, cpus, strict=True):
            pid = os.fork()
            if pid == 0:
                os.sched_setaffinity(0, {cpu})
                (group / "cgroup.procs").write_text("0", encoding="utf-8")
                while True:
                    pass
            pids.append(pid)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _join(enclave: Enclave, pids: Sequence[int]) -> None:
    for pid in pids:
        enclave.add(pid)


def _measure(groups: Sequence[Path], names: Iterable[str]) -> dict[str, float]:
    time.sleep(_WARM_UP_S)
    since, before = time.monotonic(), [_usage_s(group) for group in groups]
    time.sleep(_SECONDS)
    passed = time.monotonic() - since
    used = [(_usage_s(group) - ran) / passed for group, ran in zip(groups, before, strict=True)]
    return {name: round(100 * part, 2) for name, part in zip(names, used, strict=True)}


def _usage_s(group: Path) -> float:
    return int((group / "cpu.stat").read_text(encoding="utf-8").split()[1]) / 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
