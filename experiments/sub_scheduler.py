# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel accepts a scheduler made by ghostbpf.loaders as the sub-scheduler of a cgroup, and in which form.

Each line is one attempt: what was attached, and what came of it. docs/sub-schedulers.md has the conclusions.

    sudo python -m ghostbpf.experiments.sub_scheduler
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..loaders import Array, Btf, Map, Module, abi, compile, sched_ext
from ..loaders._libbpf import check, ffi, lib, opts
from ..loaders.errors import GhostError
from ..loaders.object import LD_IMM64, Function
from ..loaders.struct_ops import StructOps
from ..loaders.uapi import BPF_F_MMAPABLE, BPF_PSEUDO_MAP_FD, map_type
from ..schedulers.cgroups import mount_point
from ..schedulers.cpuset import CpuSet
from ..schedulers.tasks import SCHED_EXT

_SOURCE = Path(__file__).with_name("sub_scheduler.bpf.c")
_ARENA_PAGES = 64
_WAIT_S = 10.0
_FAILURE = "asked to fail"  # in the C
_ROOT, _SUB = 0, 1  # indexes of the map `ran`


class _Arena:
    """A BPF arena with a set of all CPUs at its start; ``address`` is where programs find it."""

    def __init__(self) -> None:
        options = opts("bpf_map_create_opts", map_flags=BPF_F_MMAPABLE)
        fd = lib.bpf_map_create(map_type("ARENA"), b"arena", 0, 0, _ARENA_PAGES, options)
        self.map = Map(check(fd, "make an arena"))
        # The verifier wants the address before it accepts a program that refers to the arena.
        self._memory = mmap.mmap(self.map.fd, _ARENA_PAGES * mmap.PAGESIZE)
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        possible = CpuSet.parse(Path("/sys/devices/system/cpu/possible").read_text(encoding="utf-8"))
        words = (*possible.words(len(possible) // 64 + 1), 0)
        struct.pack_into(f"=4I{len(words)}Q", self._memory, 0, 0, len(possible), len(words), 0, *words)


class _ArenaModule(Module):
    """A module whose programs all refer to an arena, which is how the kernel finds the arena of a scheduler.

    bcc has no arenas: an instruction is put before each program that loads the arena's address into a register.
    """

    arena: Map | None = None

    def bind(self, function: Function) -> bytes:
        code = super().bind(function)
        if self.arena is None:
            return code
        return struct.pack("<BBhiq", LD_IMM64, BPF_PSEUDO_MAP_FD << 4, 0, self.arena.fd, 0) + code


class _Attempts:
    """Attaches the two schedulers in one form (``struct_name``), and prints what came of it.

    ``ran`` counts how often each put a task on a CPU.
    """

    def __init__(self, struct_name: str, cgroup: Path, *, with_arena: bool) -> None:
        self._struct, self._cgroup = struct_name, cgroup.stat().st_ino
        self._arenas = [_Arena(), _Arena()] if with_arena else []
        self._object = compile(_SOURCE)
        self._root = self._module(_ROOT, {})
        self._sub = self._module(_SUB, {"ran": self._root.maps["ran"]})
        self.ran = Array(self._root.maps["ran"], abi.load(), "u64")
        self.fails = Array(self._sub.maps["fails"], abi.load(), "u64")

    def _module(self, index: int, shared: dict[str, Map]) -> Module:
        address = self._arenas[index].address & 0xFFFFFFFF if self._arenas else 0
        module = _ArenaModule(self._object, maps=shared, constants={"cgroup": self._cgroup, "all_cids": address})
        module.arena = self._arenas[index].map if self._arenas else None
        return module

    def root(self, *, accepts_subs: bool) -> StructOps | None:
        """Attach the root scheduler; None if it was refused."""
        partial = Btf.kernel().enum("scx_ops_flags")["SCX_OPS_SWITCH_PARTIAL"]
        without = set() if accepts_subs else {"sub_attach", "dispatch"}
        name = "root that accepts sub-schedulers" if accepts_subs else "root"
        link = self._attach(name, self._root, "root", without, {"flags": partial})
        if link is not None and sched_ext.status().state != "enabled":
            return None
        return link

    def sub(self) -> StructOps | None:
        """Attach the sub-scheduler of the cgroup; None if it was refused."""
        return self._attach("sub", self._sub, "sub", set(), {"sub_cgroup_id": self._cgroup})

    def _attach(
        self, what: str, module: Module, name: str, without: set[str], fields: dict[str, int]
    ) -> StructOps | None:
        ops = {f.removeprefix(f"{name}_"): f for f in self._object.functions if f.startswith(f"{name}_")}
        link, result = None, "attached"
        with sched_ext.KernelLog() as log:
            try:
                link = StructOps.attach(
                    module,
                    self._struct,
                    {op: f for op, f in ops.items() if op not in without},
                    fields={"name": name, **fields},
                    sleepable={"init"},
                )
            except GhostError as error:
                result = str(error).splitlines()[0]
            _print(form=self._struct, arena=bool(self._arenas), scheduler=what, result=result, kernel=log.lines())
        return link


def _print(**row: object) -> None:
    print(json.dumps(row), flush=True)


def _until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def _detached(link: StructOps | None) -> Iterator[StructOps | None]:
    """Detach ``link`` after the block."""
    try:
        yield link
    finally:
        if link is not None:
            link.detach()
            link.close()


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    path = mount_point() / f"sub_scheduler.{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextlib.contextmanager
def _task(cgroup: Path | None) -> Iterator[None]:
    """A task of the ext class, in ``cgroup``, that wakes all the time."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
            os.sched_setscheduler(0, SCHED_EXT, os.sched_param(0))
            for _ in itertools.count():
                time.sleep(0.001)
        os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _counts(attempts: _Attempts, index: int) -> bool:
    """Whether the scheduler of ``index`` puts tasks on CPUs now."""
    before = attempts.ran[index]
    return _until(lambda: attempts.ran[index] > before + 10)


def _try_form(struct_name: str, cgroup: Path, *, with_arena: bool) -> None:
    attempts = _Attempts(struct_name, cgroup, with_arena=with_arena)
    with _detached(attempts.root(accepts_subs=False)) as root:
        if root is not None:
            with _detached(attempts.sub()):
                pass
    sched_ext.wait_disabled()
    with _detached(attempts.root(accepts_subs=True)) as root:
        if root is not None:
            with _detached(attempts.sub()) as sub, _task(cgroup):
                if sub is not None:
                    _try_failure(attempts)
    sched_ext.wait_disabled()


def _try_failure(attempts: _Attempts) -> None:
    """See which scheduler runs which task, before and after the sub-scheduler fails."""
    with _task(None):
        _print(sub_runs_tasks=_counts(attempts, _SUB), root_runs_tasks=_counts(attempts, _ROOT))
    attempts.fails[0] = 1
    failed = _until(lambda: sched_ext.exit_reason("sub") == _FAILURE)
    _print(sub_failed=failed, root=sched_ext.status().state, root_runs_tasks=_counts(attempts, _ROOT))


def main() -> int:
    """Try each form."""
    with _cgroup() as cgroup:
        for struct_name in ("sched_ext_ops", "sched_ext_ops_cid"):
            for with_arena in (False, True):
                _try_form(struct_name, cgroup, with_arena=with_arena)
    return 0


if __name__ == "__main__":
    sys.exit(main())
