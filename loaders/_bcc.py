# SPDX-License-Identifier: Apache-2.0
# libbcc as a compiler: one call from C text to bytecode and map definitions. It runs in a child process only:
# LLVM may abort() the process, bcc changes the working directory, and neither frees its memory.

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

from . import libbcc
from ._libbpf import check, info_by_fd
from ._libbpf import ffi as bpf_ffi
from ._libbpf import lib as bpf
from ._libbpf import text as c_text
from .declarations import declare, open_library
from .headers import ADDRESS_MARKER, CONSTANT_MARKER, KFUNC_MARKER, Headers
from .object import CALL, LD_IMM64, Function, MapDef, Object, Relocation, instructions
from .uapi import BPF_PSEUDO_MAP_FD

# The kernel does not report the inner map of a map of maps; bcc's macros name it.
_MAP_OF_MAPS = re.compile(r'\bBPF_(?:ARRAY|HASH)_OF_MAPS\s*\(\s*(\w+)\s*,[^)]*?"(\w+)"')
_CFLAGS = (
    # Disable bcc's own bpf.h: the generated one has the running kernel's types.
    "-D_UAPI__LINUX_BPF_H__",
    # Kernels from 7.0 on embed named structs; without these flags, clang drops their members with a warning.
    "-fms-extensions",
    "-Wno-microsoft-anon-tag",
    # Before LLVM 16 this is a warning, and the call is compiled without a target.
    "-Werror=implicit-function-declaration",
    "-Wno-unused-value",
    "-Wno-address-of-packed-member",
)


def compile_text(name: str, text: str, headers: Headers, tree: Path, defines: dict[str, str]) -> Object | None:
    """Compile ``text`` with the headers under ``tree``; None where clang reports errors (it writes them to fd 2)."""
    ffi = declare(
        """
        void *bpf_module_create_c_from_string(const char *text, unsigned flags, const char **cflags, int count,
                                              bool allow_rlimit, const char *device);
        size_t bpf_num_functions(void *module);
        const char *bpf_function_name(void *module, size_t id);
        void *bpf_function_start_id(void *module, size_t id);
        size_t bpf_function_size_id(void *module, size_t id);
        size_t bpf_num_tables(void *module);
        int bpf_table_fd_id(void *module, size_t id);
        const char *bpf_table_name(void *module, size_t id);
        """
    )
    bcc: Any = open_library(ffi, str(libbcc.library()))
    os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    flags = [ffi.new("char[]", f.encode()) for f in (*_CFLAGS, *(f"-D{k}={v}" for k, v in defines.items()))]
    module = bcc.bpf_module_create_c_from_string(text.encode(), 0, flags, len(flags), True, ffi.NULL)
    if module == ffi.NULL:
        return None

    map_fds: dict[int, str] = {}
    for i in range(bcc.bpf_num_tables(module)):
        map_fds[bcc.bpf_table_fd_id(module, i)] = c_text(bcc.bpf_table_name(module, i))
    infos = {name: info_by_fd(fd) for fd, name in map_fds.items()}
    functions = {}
    for i in range(bcc.bpf_num_functions(module)):
        function = c_text(bcc.bpf_function_name(module, i))
        code = bytes(ffi.buffer(bcc.bpf_function_start_id(module, i), bcc.bpf_function_size_id(module, i)))
        functions[function] = Function(function, code, relocations(code, map_fds, headers))
    inner = dict(_MAP_OF_MAPS.findall(text))
    maps = {n: _map_def(n, info, inner.get(n)) for n, info in infos.items()}
    return Object(name, functions, maps, _btf(infos))


def relocations(code: bytes, map_fds: dict[int, str], headers: Headers) -> tuple[Relocation, ...]:
    """The symbolic references in ``code``, found by bcc's map descriptors and the markers of ``headers``."""
    references = []
    for insn in instructions(code):
        if insn.opcode == LD_IMM64 and insn.src == BPF_PSEUDO_MAP_FD:
            references.append(Relocation(insn.at, "map", map_fds[insn.imm]))
        elif insn.opcode == LD_IMM64 and insn.src == CONSTANT_MARKER:
            references.append(Relocation(insn.at, "constant", headers.constants[insn.imm]))
        elif insn.opcode == LD_IMM64 and insn.src == ADDRESS_MARKER:
            symbol = headers.addresses[insn.imm]
            kind = "map" if symbol in map_fds.values() else "callback"
            references.append(Relocation(insn.at, kind, symbol))
        elif insn.opcode == CALL and insn.src == 0 and insn.imm & KFUNC_MARKER:
            references.append(Relocation(insn.at, "kfunc", headers.kfuncs[insn.imm & ~KFUNC_MARKER]))
    return tuple(references)


def _map_def(name: str, info: bytes, inner: str | None) -> MapDef:
    # struct bpf_map_info: sizes from byte 0, BTF ids from byte 64, map_extra at 80.
    kind, _, key_size, value_size, max_entries, flags = struct.unpack_from("=6I", info)
    _, key_type, value_type, _, extra = struct.unpack_from("=4IQ", info, 64)
    return MapDef(name, kind, key_size, value_size, max_entries, flags, extra, key_type, value_type, inner)


def _btf(infos: dict[str, bytes]) -> bytes:
    ids = {struct.unpack_from("=I", info, 64)[0] for info in infos.values()} - {0}
    if not ids:
        return b""
    fd = check(bpf.bpf_btf_get_fd_by_id(ids.pop()), "open the maps' BTF")
    size = struct.unpack_from("=QI", info_by_fd(fd))[1]
    data, info, length = bpf_ffi.new(f"char[{size}]"), bpf_ffi.new("char[32]"), bpf_ffi.new("__u32 *", 32)
    struct.pack_into("=QI", bpf_ffi.buffer(info), 0, int(bpf_ffi.cast("uintptr_t", data)), size)
    check(bpf.bpf_obj_get_info_by_fd(fd, info, length), "read the maps' BTF")
    return bytes(bpf_ffi.buffer(data))
