# SPDX-License-Identifier: Apache-2.0
"""Translation of a task's number between this process's pid namespace and the kernel's BPF programs.

BPF programs, and so the core, its maps and an agent's messages, use a task's number in the initial namespace. System
calls and /proc use the namespace of the calling process. All Python code has the numbers of its own namespace, except
for values written to, or read from, a map or a BPF program's arguments:

    core.join(pids.to_initial(tid), …)          # the number that bpf_task_from_pid() looks up
    local = pids.to_local(record.tid for …)     # the numbers here, without tasks that have none here

In the initial namespace both numbers are the same, and the kernel is not asked.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..loaders import abi
from ..loaders.attach import Iterator as TaskIterator
from ..loaders.compiler import compile
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Map
from ..loaders.pid_namespace import is_initial
from ..loaders.source import BPF_DIR


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
