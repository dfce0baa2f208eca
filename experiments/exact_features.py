# SPDX-License-Identifier: Apache-2.0
"""Biff with features that cost each switch something in use, or left out, for ``make bench-exact``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..schedulers import trees
from ..schedulers.enclave import Enclaves
from ..schedulers.hierarchy import Node, TreeConfig
from ..schedulers.registry import POLICIES
from .candidates import Attached, Scheduler, by_policy, of_enclave
from .cgroup_limits import cgroups

#: More than any machine has: nothing is throttled, and all is accounted.
_NEVER_REACHED = "100000000 100000"


@contextlib.contextmanager
def _lending() -> Iterator[Attached]:
    with by_policy(POLICIES["biff"]) as running:
        assert running.enclave is not None
        running.enclave.set_lending(lend=True, borrow=True)
        yield running


@contextlib.contextmanager
def _limits(count: int) -> Iterator[Attached]:
    """All tasks are in one cgroup, but with a ``count`` of 2, the second task of perf's pipe is in another."""
    with cgroups("cpu.max", [_NEVER_REACHED] * count) as groups, by_policy(POLICIES["biff"]) as running:
        add = running.join
        assert add is not None

        def join(pid: int) -> None:
            (groups[0] / "cgroup.procs").write_text(f"{pid}", encoding="utf-8")
            add(pid)

        yield replace(running, join=join, pipe_cgroups=[group.name for group in groups] if count > 1 else ())


@contextlib.contextmanager
def _tree() -> Iterator[Attached]:
    leaves = tuple(Node(name, POLICIES["biff"].parse()) for name in ("first", "second"))
    with trees.temporary(TreeConfig(Node("root", arbiter="roci", children=leaves))) as root:
        yield of_enclave(Enclaves.find(trees.leaves(root)[0].enclave))


@contextlib.contextmanager
def _no_stats() -> Iterator[Attached]:
    with Enclaves.temporary(POLICIES["biff"], keep_stats=False) as enclave:
        yield of_enclave(enclave)


#: By name.
FEATURES: dict[str, Scheduler] = {
    "biff+lending": _lending,
    "biff+limits": partial(_limits, 1),
    "biff+limits2": partial(_limits, 2),
    "biff+tree": _tree,
    "biff-stats": _no_stats,
}
