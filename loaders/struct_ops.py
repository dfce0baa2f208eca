# SPDX-License-Identifier: Apache-2.0
"""A kernel operations table (``struct sched_ext_ops``, ``struct tcp_congestion_ops`` …) filled with BPF programs."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

from . import kernel_types
from ._libbpf import check, ffi, lib, opts
from .btf import Member
from .errors import AttachError, BpfError, KernelUnsupported
from .handle import Handle, open_pinned
from .link import Module, Target, close_all
from .uapi import BPF_F_LINK, attach_type, map_type

# The kernel demands a BTF descriptor to create a struct_ops map, of any content: this one describes an int.
_INT_BTF = bytes.fromhex(
    "9feb0100" "18000000" "00000000" "10000000" "10000000" "05000000"
    "01000000" "00000001" "04000000" "20000001" "00696e7400"
)  # fmt: skip


class StructOps(Handle):
    """An attached operations table, held by its link: closing it detaches, unless it is pinned."""

    @classmethod
    def attach(
        cls,
        module: Module,
        struct_name: str,
        ops: Mapping[str, str],
        *,
        fields: Mapping[str, int | str] | None = None,
        sleepable: Collection[str] = (),
    ) -> Self:
        """Load each function of ``ops`` (member to function name), fill in ``fields`` and attach.

        ``sleepable`` names the members whose programs may sleep. Raises VerifierError, AttachError,
        KernelUnsupported, BpfError.
        """
        outer = kernel_types.struct(f"bpf_struct_ops_{struct_name}")
        members = kernel_types.struct(struct_name).members
        data = outer.members["data"].offset
        value = bytearray(outer.size)
        for name, content in (fields or {}).items():
            if name not in members:
                raise KernelUnsupported(f"{struct_name}.{name}", f"this kernel's {struct_name} has no {name}")
            _store(value, data, members[name], content)

        programs = module.load_all(
            {
                member: (function, Target.struct_ops(struct_name, member, sleepable=member in sleepable))
                for member, function in ops.items()
            }
        )
        for member, program in programs.items():
            _store(value, data, members[member], program.fd)
        try:
            with _create_map(struct_name, outer.id, len(value)) as table:
                key = ffi.new("int *", 0)
                check(
                    lib.bpf_map_update_elem(table.fd, key, bytes(value), 0),
                    f"register {struct_name} with the kernel",
                )
                link = lib.bpf_link_create(table.fd, 0, attach_type("STRUCT_OPS"), ffi.NULL)
                if link == -errno.EBUSY:
                    raise AttachError(f"cannot attach {struct_name}: another is attached")
                return cls(check(link, f"attach {struct_name}"))
        finally:
            close_all(programs.values())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The link pinned at ``path``."""
        return cls(open_pinned(path))

    def detach(self) -> None:
        """Detach now, even if another process holds the link; it cannot be attached again."""
        result = lib.bpf_link_detach(self.fd)
        # ENOLINK: the kernel has already ejected it.
        if result < 0 and result != -errno.ENOLINK:
            raise BpfError("detach a struct_ops link", -result)


def _store(value: bytearray, base: int, member: Member, content: int | str) -> None:
    try:
        raw = content.encode() + b"\0" if isinstance(content, str) else content.to_bytes(member.size, "little")
    except OverflowError:
        raise AttachError(f"{member.name} = {content} does not fit into {member.size} bytes, unsigned") from None
    if len(raw) > member.size:
        raise AttachError(f'"{content}" is longer than the {member.size - 1} bytes of {member.name}')
    value[base + member.offset : base + member.offset + len(raw)] = raw


def _create_map(struct_name: str, value_id: int, size: int) -> Handle:
    with Handle(check(lib.bpf_btf_load(_INT_BTF, len(_INT_BTF), ffi.NULL), "load BTF")) as btf:
        options = opts("bpf_map_create_opts", map_flags=BPF_F_LINK, btf_fd=btf.fd, btf_vmlinux_value_type_id=value_id)
        fd = lib.bpf_map_create(map_type("STRUCT_OPS"), struct_name[:15].encode(), 4, size, 1, options)
        return Handle(check(fd, f"create a {struct_name} map"))
