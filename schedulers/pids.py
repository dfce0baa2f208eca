# SPDX-License-Identifier: Apache-2.0
"""Pid namespaces: which numbers this process gives to tasks, and which the kernel's BPF programs give to them.

BPF programs, and so the core, its maps and an agent's messages, name a task by its number in the initial namespace.
System calls and /proc go by the namespace of the process that uses them. Everything outside of this module has numbers
of this process's own namespace, but for what is written to, or read from, a map or a BPF program's arguments:

    core.join(pids.to_initial(tid), …)          # the number that bpf_task_from_pid() looks up
    found = pids.to_local(record.tid for …)     # what they are called here; those of no number here are not in it

In the initial namespace both are the same number, and nothing is asked of the kernel.
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
    """What was asked for cannot be done from this pid namespace."""


def is_initial(process: Path = _SELF) -> bool:
    """Whether ``process``, of /proc, by default this one, is in the initial pid namespace.

    Raises NamespaceError where /proc does not tell.
    """
    try:
        return (process / "ns/pid").stat().st_ino == _INITIAL
    except OSError:
        raise _foreign_proc() from None


def need_own_proc() -> None:
    """Raise NamespaceError where /proc shows the tasks of another pid namespace than this process's."""
    try:
        lines = (_SELF / "status").read_text(errors="replace").splitlines()
    except OSError:
        raise _foreign_proc() from None
    # One number for each namespace from that of /proc down to the process's own.
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    if len(numbers) > 1:
        raise _foreign_proc()


def need_initial(action: str) -> None:
    """Raise NamespaceError, for ``action`` cannot be done, unless this is the initial pid namespace."""
    if not is_initial():
        raise NamespaceError(f"cannot {action} from within a pid namespace", hint=_ON_THE_HOST)


def note() -> str:
    """What to say where tasks are shown by the numbers that BPF has of them; nothing in the initial namespace."""
    return "" if is_initial() else "tids and pids are those of the initial pid namespace"


def to_initial(tid: int) -> int:
    """The number in the initial namespace of the task that is ``tid`` here; 0 where there is none."""
    if is_initial():
        return tid
    if (call := _call_initial()) is None:
        return next((initial for initial, local in _numbers().items() if local == tid), 0)
    _, left = call.run(bytes(_ffi().buffer(_ffi().new("struct task_number *", {"local": tid}))))
    return int(_ffi().from_buffer("struct task_number *", left).initial)


def to_local(tids: Iterable[int]) -> Mapping[int, int]:
    """What tasks that are ``tids`` in the initial namespace are called here, but for those without a number here."""
    if is_initial():
        return {tid: tid for tid in tids}
    numbers = _numbers()
    return {tid: numbers[tid] for tid in tids if tid in numbers}


def hidden_tasks(tasks: Map, enclave: int, generation: int) -> int:
    """How many tasks of an enclave, by the core's map ``tasks``, have no number here: nothing here can move them."""
    if is_initial():
        return 0
    module = Module(compile(_source()), maps={"tasks": tasks})
    argument = _ffi().new("struct count_args *", {"enclave": enclave, "generation": generation})
    with module.load("call_count_hidden", Target.syscall()) as program:
        _, left = program.run(bytes(_ffi().buffer(argument)))
    return int(_ffi().from_buffer("struct count_args *", left).tasks)


def _numbers() -> dict[int, int]:
    """Each task that has a number here: its number in the initial namespace, and that."""
    data = _iterator().read()
    records = _ffi().from_buffer("struct task_number[]", bytearray(data)) if data else ()
    return {record.initial: record.local for record in records}


@functools.cache
def _call_initial() -> Program | None:
    """The program that looks up one task; None where the kernel has no bpf_task_from_vpid()."""
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
