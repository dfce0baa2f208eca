# SPDX-License-Identifier: Apache-2.0
"""From an Object to programs in the kernel: creates or borrows maps, binds references, loads programs."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from . import callbacks, kernel_types
from ._libbpf import check, ffi, lib, opts, text
from .btf import Kind
from .errors import BpfError, KernelUnsupported, LinkError, PermissionMissing, VerifierError
from .handle import Handle
from .maps import Map
from .object import CALL, LD_IMM64, Function, MapDef, Object, Relocation
from .uapi import BPF_F_SLEEPABLE, BPF_PSEUDO_KFUNC_CALL, BPF_PSEUDO_MAP_FD, attach_type, program_type

_LOG_BYTES = 4 << 20
_NAME_BYTES = 15
# glibc keeps the stacks of ended threads, and an agent's memory is locked: use small ones.
_STACK_BYTES = 256 << 10


class ProgramType(StrEnum):
    """The program types used here: enumerators of the kernel's enum bpf_prog_type, without BPF_PROG_TYPE_."""

    PERF_EVENT = "PERF_EVENT"
    TRACING = "TRACING"
    STRUCT_OPS = "STRUCT_OPS"
    SYSCALL = "SYSCALL"


@dataclass(frozen=True)
class Target:
    """A program type with its attach point; made by the class methods."""

    type: ProgramType
    expected_attach_type: int = 0
    attach_btf_id: int = 0
    sleepable: bool = False

    @classmethod
    def struct_ops(cls, struct_name: str, member: str, *, sleepable: bool = False) -> Target:
        """The callback ``member`` of ``struct struct_name``."""
        table = kernel_types.struct(struct_name)
        if member not in table.members:
            raise KernelUnsupported(f"{struct_name}.{member}", f"this kernel's {struct_name} has no {member}")
        return cls(ProgramType.STRUCT_OPS, table.members[member].index, table.id, sleepable)

    @classmethod
    def syscall(cls) -> Target:
        """A program that runs when called (BPF_PROG_RUN), and may sleep."""
        return cls(ProgramType.SYSCALL, sleepable=True)

    @classmethod
    def tracepoint(cls, name: str) -> Target:
        """The kernel tracepoint ``name`` with typed arguments (tp_btf)."""
        target_id = _target_id(f"btf_trace_{name}", Kind.TYPEDEF, f"tracepoint {name}")
        return cls(ProgramType.TRACING, attach_type("TRACE_RAW_TP"), target_id)

    @classmethod
    def function_entry(cls, name: str) -> Target:
        """The start of the kernel function ``name``, with its arguments (fentry)."""
        return cls(ProgramType.TRACING, attach_type("TRACE_FENTRY"), _target_id(name, Kind.FUNC, f"function {name}"))

    @classmethod
    def function_exit(cls, name: str) -> Target:
        """The end of the kernel function ``name``, with its arguments and its result (fexit)."""
        return cls(ProgramType.TRACING, attach_type("TRACE_FEXIT"), _target_id(name, Kind.FUNC, f"function {name}"))

    @classmethod
    def iterator(cls, name: str) -> Target:
        """The BPF iterator over ``name``, for example "task"."""
        target_id = _target_id(f"bpf_iter_{name}", Kind.FUNC, f"iterator {name}")
        return cls(ProgramType.TRACING, attach_type("TRACE_ITER"), target_id)

    @classmethod
    def perf_event(cls) -> Target:
        """A program that a perf event runs."""
        return cls(ProgramType.PERF_EVENT)


def _target_id(name: str, kind: Kind, feature: str) -> int:
    type_id = kernel_types.find(name, kind)
    if type_id is None:
        raise KernelUnsupported(feature, f"this kernel has no {feature}")
    return type_id


class Program(Handle):
    """A loaded program."""

    @classmethod
    def by_id(cls, id: int) -> Self:
        """The loaded program ``id``; raises BpfError, also without CAP_SYS_ADMIN."""
        return cls(check(lib.bpf_prog_get_fd_by_id(id), f"open BPF program {id}"))

    @property
    def id(self) -> int:
        """Its number in the kernel, which an array of programs has as the value."""
        lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("prog_id:"))

    def run(self, context: bytearray | bytes = b"") -> tuple[int, bytes]:
        """Call a SYSCALL program with ``context``; returns its signed return value and the context as it left it."""
        size = len(context)
        data = ffi.new(f"char[{max(size, 1)}]", bytes(context))
        test = opts("bpf_test_run_opts", ctx_in=data if size else ffi.NULL, ctx_size_in=size)
        check(lib.bpf_prog_test_run_opts(self.fd, test), "run a BPF program")
        return int(ffi.cast("int32_t", test.retval)), bytes(ffi.buffer(data, size))

    def prepared(self, size: int) -> Call:
        """A reusable call with a context of ``size`` bytes."""
        return Call(self, size)


class Call:
    """A repeatable call of a SYSCALL program with a writable buffer, ``context``; a call allocates nothing."""

    def __init__(self, program: Program, size: int) -> None:
        self._data = ffi.new(f"char[{size}]")
        self.context = memoryview(ffi.buffer(self._data))
        self._options = opts("bpf_test_run_opts", ctx_in=self._data, ctx_size_in=size)
        self._program = program

    def __call__(self) -> int:
        """Call the program; returns its return value."""
        result = lib.bpf_prog_test_run_opts(self._program.fd, self._options)
        if result < 0:
            check(result, "run a BPF program")
        return int(self._options.retval)


class Module:
    """An Object bound to maps: ``maps`` by name, and ``load`` for its functions.

    A map in ``maps`` is used where the name matches, so that separately compiled objects share it, and is still its
    owner's to close. The other maps that a function refers to are created; ``entries`` overrides their numbers of
    entries. ``constants`` are the values of LINK_CONSTANT(name).
    """

    def __init__(
        self,
        obj: Object,
        *,
        maps: Mapping[str, Map] | None = None,
        constants: Mapping[str, int] | None = None,
        entries: Mapping[str, int] | None = None,
    ) -> None:
        self.object = obj
        self._constants = dict(constants or {})
        self._borrowed = {name: m for name, m in (maps or {}).items() if name in obj.maps}
        used = {r.symbol for f in obj.functions.values() for r in f.relocations if r.kind == "map"}
        with _load_btf(obj.btf) as btf:
            self._made = {
                name: create_map(definition, btf.fd, (entries or {}).get(name), obj.maps)
                for name, definition in obj.maps.items()
                if name in used and name not in self._borrowed
            }

    @property
    def maps(self) -> dict[str, Map]:
        """Every map that its functions use, by name."""
        return {**self._borrowed, **self._made}

    @property
    def own_maps(self) -> dict[str, Map]:
        """The maps created for this module."""
        return dict(self._made)

    def load(self, function: str, target: Target) -> Program:
        """Load ``function`` as ``target``; raises VerifierError, LinkError, PermissionMissing."""
        if function not in self.object.functions:
            raise LinkError(function, f"{self.object.source} has no function {function}")
        compiled = self.object.functions[function]
        code, starts = self._with_callbacks(compiled)
        if len(starts) == 1:
            return _load(compiled.name, code, target)
        with _load_btf(callbacks.btf()) as btf:
            return _load(compiled.name, code, target, btf.fd, callbacks.func_info(starts))

    def load_all(self, functions: Mapping[str, tuple[str, Target]]) -> dict[str, Program]:
        """Load each function as its target, and return the programs by the same keys.

        The verifier is slow: one thread on each CPU loads programs. Raises the first error of load(), in the order of
        ``functions``; no program is loaded then.
        """
        loaded: dict[str, Program] = {}
        failed: dict[str, Exception] = {}
        rest = iter(functions.items())

        def load_rest() -> None:
            for key, (function, target) in rest:
                try:
                    loaded[key] = self.load(function, target)
                except Exception as error:
                    failed[key] = error

        threads = [threading.Thread(target=load_rest) for _ in range(min(len(functions), len(os.sched_getaffinity(0))))]
        before = threading.stack_size(_STACK_BYTES)
        for thread in threads:
            thread.start()
        threading.stack_size(before)
        for thread in threads:
            thread.join()
        if failed:
            close_all(loaded.values())
            raise next(failed[key] for key in functions if key in failed)
        return {key: loaded[key] for key in functions}

    def bind(self, function: Function) -> bytes:
        """The bytecode of ``function``, with its references bound to this kernel and these maps.

        References to callbacks stay as they are.
        """
        code = bytearray(function.code)
        for relocation in function.relocations:
            if relocation.kind != "callback":
                _patch(code, relocation, self._value(relocation))
        return bytes(code)

    def _with_callbacks(self, function: Function) -> tuple[bytes, list[int]]:
        """The bytecode of ``function`` and its callbacks, and the instructions at which they begin."""
        code, starts = bytearray(self.bind(function)), {function.name: 0}
        for relocation in function.relocations:
            if relocation.kind != "callback":
                continue
            if relocation.symbol not in starts:
                if relocation.symbol not in self.object.functions:
                    raise LinkError(function.name, f"{self.object.source} has no function {relocation.symbol}")
                starts[relocation.symbol] = len(code) // 8
                code += self.bind(self.object.functions[relocation.symbol])
            callbacks.refer(code, relocation.instruction, starts[relocation.symbol])
        return bytes(code), list(starts.values())

    def close(self) -> None:
        """Close the maps created here; loaded programs keep the maps that they use."""
        for made in self._made.values():
            made.close()

    def _value(self, relocation: Relocation) -> int:
        match relocation.kind:
            case "map":
                return self.maps[relocation.symbol].fd
            case "kfunc":
                func_id = kernel_types.find(relocation.symbol, Kind.FUNC)
                if func_id is None:
                    raise LinkError(relocation.symbol, f"this kernel has no function {relocation.symbol}")
                return func_id
            case _:
                if relocation.symbol not in self._constants:
                    raise LinkError(relocation.symbol, f"{self.object.source} needs a value for {relocation.symbol}")
                return self._constants[relocation.symbol]


def _patch(code: bytearray, relocation: Relocation, value: int) -> None:
    at = relocation.instruction * 8
    opcode, registers, offset, _ = struct.unpack_from("<BBhi", code, at)
    destination = registers & 0x0F
    if relocation.kind == "kfunc":
        assert opcode == CALL
        struct.pack_into("<BBhi", code, at, opcode, destination | BPF_PSEUDO_KFUNC_CALL << 4, offset, value)
        return
    assert opcode == LD_IMM64
    source = BPF_PSEUDO_MAP_FD if relocation.kind == "map" else 0
    struct.pack_into("<BBhI", code, at, opcode, destination | source << 4, offset, value & 0xFFFFFFFF)
    struct.pack_into("<I", code, at + 12, value >> 32 & 0xFFFFFFFF)


def _load_btf(blob: bytes) -> Handle:
    if not blob:
        return Handle(-1)
    return Handle(check(lib.bpf_btf_load(blob, len(blob), ffi.NULL), "load BTF"))


def create_map(
    definition: MapDef, btf_fd: int = -1, entries: int | None = None, templates: Mapping[str, MapDef] | None = None
) -> Map:
    """Create a map; a map of maps takes the definition of its inner map from ``templates``. Raises BpfError."""
    with create_map(templates[definition.inner]) if templates and definition.inner else Handle(-1) as inner:
        typed = btf_fd >= 0 and definition.value_type
        options = opts(
            "bpf_map_create_opts",
            map_flags=definition.flags,
            map_extra=definition.extra,
            btf_fd=btf_fd if typed else 0,
            btf_key_type_id=definition.key_type if typed else 0,
            btf_value_type_id=definition.value_type if typed else 0,
            inner_map_fd=max(inner.fd, 0),
        )
        name = definition.name[:_NAME_BYTES].encode()
        size = definition.max_entries if entries is None else entries
        fd = lib.bpf_map_create(definition.type, name, definition.key_size, definition.value_size, size, options)
    return Map(check(fd, f"create map {definition.name}"))


def _load(name: str, code: bytes, target: Target, btf_fd: int = 0, func_info: bytes = b"") -> Program:
    functions = ffi.from_buffer(func_info) if func_info else ffi.NULL

    def attempt(**log: object) -> int:
        options = opts(
            "bpf_prog_load_opts",
            expected_attach_type=target.expected_attach_type,
            attach_btf_id=target.attach_btf_id,
            prog_flags=BPF_F_SLEEPABLE if target.sleepable else 0,
            prog_btf_fd=btf_fd,
            func_info=functions,
            func_info_cnt=len(func_info) // callbacks.RECORD_BYTES,
            func_info_rec_size=callbacks.RECORD_BYTES if func_info else 0,
            **log,
        )
        return int(lib.bpf_prog_load(number, name[:_NAME_BYTES].encode(), b"GPL", code, len(code) // 8, options))

    number = program_type(target.type)

    fd = attempt()
    if fd >= 0:
        return Program(fd)
    buffer = ffi.new("char[]", _LOG_BYTES)
    fd = attempt(log_level=1, log_size=_LOG_BYTES, log_buf=buffer)
    if fd >= 0:
        return Program(fd)
    log = text(buffer)
    if fd == -errno.EPERM and not log:
        raise PermissionMissing("CAP_BPF or CAP_PERFMON", f"load BPF program {name}")
    if not log:
        raise BpfError(f"load BPF program {name}", -fd)
    raise VerifierError(name, -fd, log)


def close_all(handles: Iterable[Handle]) -> None:
    """Close each of ``handles``."""
    for handle in handles:
        handle.close()
