# SPDX-License-Identifier: Apache-2.0
"""Pid namespaces: translating a task's number between this process and the kernel's BPF programs.

BPF programs, and so the core, its maps and an agent's messages, use a task's number in the initial namespace. System
calls and /proc use the namespace of the calling process. All Python code has the numbers of its own namespace, except
for values written to, or read from, a map or a BPF program's arguments:

    core.join(pids.to_initial(tid), …)          # the number that bpf_task_from_pid() looks up
    local = pids.to_local(record.tid for …)     # the numbers here, without tasks that have none here

In the initial namespace both numbers are the same, and the kernel is not asked.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..loaders import abi
from ..loaders.attach import Iterator as TaskIterator
from ..loaders.compiler import compile
from ..loaders.errors import GhostError
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Map
from ..loaders.source import BPF_DIR

#: The inode of the initial namespace (PROC_PID_INIT_INO of the kernel).
_INITIAL = 0xEFFFFFFC
_SELF = Path("/proc/self")
_ON_THE_HOST = "run it in the initial pid namespace: on the host, not in a container"


class NamespaceError(GhostError):
    """The action is not possible in this pid namespace."""


def is_initial(process: Path = _SELF) -> bool:
    """Whether ``process``, a directory of /proc (default: this process), is in the initial pid namespace.

    Raises NamespaceError if /proc does not say.
    """
    try:
        return (process / "ns/pid").stat().st_ino == _INITIAL
    except OSError:
        raise _foreign_proc() from None


def need_own_proc() -> None:
    """Raise NamespaceError if /proc shows the tasks of another pid namespace than this process's."""
    try:
        lines = (_SELF / "status").read_text(errors="replace").splitlines()
    except OSError:
        raise _foreign_proc() from None
    # One number for each namespace from that of /proc down to the process's own.
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    if len(numbers) > 1:
        raise _foreign_proc()


def need_initial(action: str) -> None:
    """Raise NamespaceError, saying that ``action`` is impossible, unless this is the initial pid namespace."""
    if not is_initial():
        raise NamespaceError(f"cannot {action} from within a pid namespace", hint=_ON_THE_HOST)


def note() -> str:
    """The note for output with numbers of the initial namespace; empty in that namespace."""
    return "" if is_initial() else "tids and pids are those of the initial pid namespace"


def to_initial(tid: int) -> int:
    """The number in the initial namespace of the task that is ``tid`` here; 0 if there is none."""
    if is_initial():
        return tid
    if (call := _call_initial()) is None:
        return next((initial for initial, local in _numbers().items() if local == tid), 0)
    _, output = call.run(bytes(_ffi().buffer(_ffi().new("struct task_number *", {"local": tid}))))
    return int(_ffi().from_buffer("struct task_number *", output).initial)


def to_local(tids: Iterable[int]) -> Mapping[int, int]:
    """The numbers here of tasks that are ``tids`` in the initial namespace, without tasks that have none here."""
    if is_initial():
        return {tid: tid for tid in tids}
    numbers = _numbers()
    return {tid: numbers[tid] for tid in tids if tid in numbers}


def hidden_tasks(tasks: Map, enclave: int, generation: int) -> int:
    """How many tasks of an enclave, by the core's map ``tasks``, have no number here, and so cannot be moved."""
    if is_initial():
        return 0
    module = Module(compile(_source()), maps={"tasks": tasks})
    argument = _ffi().new("struct count_args *", {"enclave": enclave, "generation": generation})
    with module.load("call_count_hidden", Target.syscall()) as program:
        _, output = program.run(bytes(_ffi().buffer(argument)))
    return int(_ffi().from_buffer("struct count_args *", output).tasks)


def _numbers() -> dict[int, int]:
    """For each task that has a number here: that number by its number in the initial namespace."""
    data = _iterator().read()
    records = _ffi().from_buffer("struct task_number[]", bytearray(data)) if data else ()
    return {record.initial: record.local for record in records}


@functools.cache
def _call_initial() -> Program | None:
    """The program that looks up one task; None if the kernel has no bpf_task_from_vpid()."""
    module = Module(compile(_source()))
    return module.load("call_initial", Target.syscall()) if "call_initial" in module.object.functions else None


@functools.cache
def _iterator() -> TaskIterator:
    # The kernel walks the namespace of the process that opens the iterator to read from it.
    with Module(compile(_source())).load("iter_numbers", Target.iterator("task")) as program:
        return TaskIterator.attach(program)


@functools.cache
def _ffi() -> Any:
    return abi.load(BPF_DIR / "core" / "pids.h")


def _source() -> Path:
    return BPF_DIR / "core" / "pids.bpf.c"


def _foreign_proc() -> NamespaceError:
    return NamespaceError(
        f"/proc is not that of the pid namespace of process {os.getpid()}",
        hint="mount -t proc proc /proc, in a mount namespace of its own (unshare --pid --fork --mount-proc)",
    )
