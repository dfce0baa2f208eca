# SPDX-License-Identifier: Apache-2.0
"""The BPF programs of a tree of policies (bpf/core/hierarchy.bpf.c), between the core and the leaves' policies.

A tree has one set of them, pinned below its root. The core's slots of every enclave of the tree hold these programs,
and the policies' own are in the set's arrays, by slot.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..loaders.compiler import compile
from ..loaders.handle import open_pinned
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Hash, Map, MmapArray
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from . import stay_alive
from .core import Core, ffi
from .pins import ROOT, make_private
from .topology import nr_cpu_words

#: The ops that the layer has a program for.
_OPS = ("select_cpu", "enqueue", "dispatch", "tick")
#: Those that have another one in front of it, for leaves with priority CPUs.
_PRIORITY_OPS = ("select_cpu", "enqueue", "tick")
_COUNT = "call_count_waiting"
#: The map with the ``struct tree``, which is pinned last.
_TREE = "tree"


def compiled() -> Object:
    """The layer's object for this kernel. Raises what compile() raises."""
    return compile(BPF_DIR / "core" / "hierarchy.bpf.c", {"NR_CPU_WORDS": nr_cpu_words()})


class HierarchyLayer:
    """The layer of enclave ``id``, if it is in a tree; ``record`` is its ``struct enclave``."""

    def __init__(self, core: Core, id: int, record: Any) -> None:
        self._core, self._id, self._record = core, id, record

    def load(self) -> None:
        """Load the programs of the tree whose root is this enclave. Raises what loading raises."""
        shutil.rmtree(self._path, ignore_errors=True)
        constants = {"enclave": self._id, "tick_ns": stay_alive.constants()["tick_ns"]}
        module = Module(compiled(), maps=self._core.maps, constants=constants)
        targets = {op: (f"hierarchy_{op}", Target.struct_ops("sched_ext_ops", op)) for op in _OPS}
        targets |= {f"priority_{op}": (f"priority_{op}", targets[op][1]) for op in _PRIORITY_OPS}
        with contextlib.closing(module):
            programs = module.load_all({**targets, _COUNT: (_COUNT, Target.syscall())})
            make_private(self._path)
            for op in _OPS:
                module.own_maps[f"inner_{op}"].pin(self._path / f"inner_{op}")
            for op in _PRIORITY_OPS:
                behind = module.own_maps[f"behind_{op}"]
                behind.pin(self._path / f"behind_{op}")
                _store(behind, 0, programs[op])
            for name, program in programs.items():
                program.pin(self._path / name)
                program.close()
            module.own_maps["trees"].pin(self._path / _TREE)

    def cover(self, bank: int, programs: Mapping[str, Program]) -> None:
        """Put the layer, if there is one, before a policy whose ``programs``, by op, are in ``bank`` of the slots."""
        if not self._record.tree:
            return
        number = self._record.leaf
        has_priority_cpus = number and any(self.tree.leaves[number - 1].priority)
        for op in _OPS:
            name = f"priority_{op}" if has_priority_cpus and op in _PRIORITY_OPS else op
            with Program(open_pinned(self._path / name)) as layer, self._open_inner(op) as inner:
                _store(inner, self._slot(bank), programs.get(op))
                self._core.slots[op][self._slot(bank)] = layer.fd

    def empty(self, bank: int) -> None:
        """The policy of ``bank`` has left the core's slots: let the layer forget it."""
        if self._record.tree and self._path.exists():
            for op in _OPS:
                with self._open_inner(op) as inner:
                    _store(inner, self._slot(bank), None)

    def count_waiting(self) -> int:
        """How many tasks of the enclave wait for a CPU; 0 if it is in no tree."""
        if not self._record.tree:
            return 0
        arguments = ffi().new("struct join_args *", {"enclave": self._id})
        with Program(open_pinned(self._path / _COUNT)) as program:
            return program.run(bytes(ffi().buffer(arguments)))[0]

    @functools.cached_property
    def tree(self) -> Any:
        """The ``struct tree`` of the tree that the enclave is in; BpfError if its layer has not been loaded."""
        with Map.open(self._path / _TREE) as opened:
            return MmapArray(opened, ffi(), "struct tree")[0]

    @property
    def is_complete(self) -> bool:
        """Whether the tree has all its leaves; one that is not complete was left by a loader that was killed."""
        return (self._path / _TREE).exists() and bool(self.tree.nr_leaves)

    @property
    def _path(self) -> Path:
        return ROOT / f"enclave_{int(self._record.tree)}" / "hierarchy"

    def _open_inner(self, op: str) -> Map:
        return Map.open(self._path / f"inner_{op}")

    def _slot(self, bank: int) -> int:
        return 2 * self._id + bank


def _store(inner: Map, index: int, program: Program | None) -> None:
    """Put ``program`` into a slot; None empties the slot."""
    slots = Hash(inner, ffi(), "u32", "u32")
    if program is not None:
        slots[index] = program.fd
    else:
        with contextlib.suppress(KeyError):
            del slots[index]
