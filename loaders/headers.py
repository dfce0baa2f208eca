# SPDX-License-Identifier: Apache-2.0
"""A kernel header tree for bcc, generated from the running kernel's BTF: no headers package, no CO-RE.

The headers declare only what a source names: each ``struct``, ``union`` and ``enum`` with its dependencies, and each
kfunc that it calls. A kfunc becomes a function pointer constant, which bcc compiles to ``call MARKER + n``; the linker
replaces that by a call of the kernel function. ``HAVE_<name>`` is defined for each kfunc that the kernel has, so a
source can test for it in the preprocessor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .btf import Btf, Kind

#: ``call imm`` values from here on are kfunc references; helper ids are far below.
KFUNC_MARKER = 0x40000000

#: An ``ld_imm64`` with this source register is a constant bound at link time (the kernel uses 0 to 6).
CONSTANT_MARKER = 15

#: The same for the address of a map or of a callback.
ADDRESS_MARKER = 14

# Types that bcc's helpers.h uses.
_BCC_TYPEDEFS = (
    *"u8 u16 u32 u64 s8 s16 s32 s64 __u8 __u16 __u32 __u64 __s8 __s16 __s32 __s64".split(),
    *"__be16 __be32 __be64 __le16 __le32 __le64 __sum16 __wsum size_t uintptr_t pid_t bool".split(),
)
_BCC_TYPES = (
    *"pt_regs bpf_raw_tracepoint_args bpf_map_type bpf_func_id bpf_spin_lock bpf_timer bpf_dynptr".split(),
    "bpf_stack_build_id",
)

# Constants in the code that bcc's rewriter generates for map.update(), insert() and increment().
_BCC_CONSTANTS = {"BPF_ANY", "BPF_NOEXIST", "BPF_EXIST"}

_STUBS = {
    "include/linux/kconfig.h": (
        "#define CONFIG_BPF_SYSCALL 1\n#define BPF_NO_PRESERVE_ACCESS_INDEX 1\n#define BPF_NO_KFUNC_PROTOTYPES 1\n"
    ),
    "include/linux/log2.h": "#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzll((n) - 1)))\n",
    "include/linux/version.h": (
        "#define LINUX_VERSION_CODE 0x7fffffff\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    ),
    "include/asm/page.h": "#define PAGE_SIZE 4096\n",
    "include/uapi/linux/if_packet.h": "",
    "include/uapi/linux/ptrace.h": "",
    "include/linux/types.h": "",
    "include/linux/bpf_common.h": "",
    "include/linux/sched.h": "",
}

_PROLOGUE = """\
#ifndef __aligned_u64
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#endif
#define __bitwise
#define __always_inline inline __attribute__((always_inline))
#define NULL ((void *)0)
#define true 1
#define false 0
"""

_TYPE_NAME = re.compile(r"\b(struct|union|enum)\s+([A-Za-z_]\w*)")
_ENUMERATOR = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Za-z0-9_]*\b")
_CALL = re.compile(r"(?<![.>\w])([A-Za-z_]\w*)\s*\(")
_TESTED_FOR = re.compile(r"\bHAVE_(\w+)")
_DEFINED = re.compile(r"\b(\w+)\s*\((?:[^;{}()]|\([^;{}()]*\))*\)\s*\{|#\s*define\s+(\w+)\(")
_CONSTANT = re.compile(r"\bLINK_CONSTANT\(\s*(\w+)\s*\)")
_TYPE_ID = re.compile(r"\bTYPE_ID\(\s*(\w+)\s*\)")
_ADDRESS = re.compile(r"\bLINK_ADDRESS\(\s*(\w+)\s*\)")
_KINDS = {"struct": (Kind.STRUCT,), "union": (Kind.UNION,), "enum": (Kind.ENUM, Kind.ENUM64)}


@dataclass(frozen=True)
class Headers:
    """``vmlinux_h`` for one source; marker numbers index ``kfuncs``, ``constants`` and ``addresses``."""

    vmlinux_h: str
    kfuncs: tuple[str, ...]
    constants: tuple[str, ...]
    addresses: tuple[str, ...] = ()

    def write(self, root: Path) -> None:
        """Write the tree to ``root``, for BCC_KERNEL_SOURCE."""
        for name, text in {**_STUBS, "include/uapi/linux/bpf.h": self.vmlinux_h}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def generate(code: str, btf: Btf) -> Headers:
    """Headers for ``code`` (a translation unit without comments), from ``btf``."""
    kfuncs = _kfuncs(code, btf)
    constants = tuple(sorted(set(_CONSTANT.findall(code))))
    addresses = tuple(sorted(set(_ADDRESS.findall(code))))
    lines = [_PROLOGUE, btf.declare(_types(code, btf), kfuncs)]
    lines += [f"#define {name} {value}" for name, value in _enumerators(code, btf)]
    lines += [
        f"#define HAVE_{name} 1\nstatic {name}__t *{name} = ({name}__t *){KFUNC_MARKER | n:#x};"
        for n, name in enumerate(kfuncs)
    ]
    lines.append("#define TYPE_ID(name) TYPE_ID_##name")
    type_ids = {name: btf.find(name, Kind.STRUCT) for name in sorted(set(_TYPE_ID.findall(code)))}
    lines += [f"#define TYPE_ID_{name} {type_id}" for name, type_id in type_ids.items() if type_id]
    lines.append(f"#define LINK_CONSTANT(name) bpf_pseudo_fd({CONSTANT_MARKER}, LINK_CONSTANT_##name)")
    lines += [f"#define LINK_CONSTANT_{name} {n}" for n, name in enumerate(constants)]
    if addresses:
        lines.append(f"#define LINK_ADDRESS(name) (void *)bpf_pseudo_fd({ADDRESS_MARKER}, LINK_ADDRESS_##name)")
        lines += [f"#define LINK_ADDRESS_{name} {n}" for n, name in enumerate(addresses)]
    return Headers("\n".join(lines) + "\n", tuple(kfuncs), constants, addresses)


def _types(code: str, btf: Btf) -> list[int]:
    types = [btf.find(name, Kind.TYPEDEF) for name in _BCC_TYPEDEFS]
    types += [btf.find(name, Kind.STRUCT, Kind.ENUM) for name in _BCC_TYPES]
    defined_here = set(re.findall(r"\b(?:struct|union|enum)\s+(\w+)\s*\{", code))
    for keyword, name in dict.fromkeys(_TYPE_NAME.findall(code)):
        if name not in defined_here:
            types.append(btf.find(name, *_KINDS[keyword]))
    return [type_id for type_id in types if type_id]


def _enumerators(code: str, btf: Btf) -> list[tuple[str, str]]:
    """Enumerators that ``code`` uses, and their values: most of BPF's flags are in enums without a name."""
    used = _BCC_CONSTANTS.union(_ENUMERATOR.findall(code))
    values = {n: v for n, v in btf.enumerators.items() if n in used or n.startswith("BPF_F_")}
    return [(name, f"{value:#x}ULL" if value >> 31 > 0 else str(value)) for name, value in sorted(values.items())]


def _kfuncs(code: str, btf: Btf) -> dict[str, int]:
    """Kernel functions that ``code`` calls or tests for, without its own and BPF's helpers (which BTF has, too)."""
    helpers = {"bpf_" + name.removeprefix("BPF_FUNC_") for name in btf.enum("bpf_func_id")}
    own = {name for pair in _DEFINED.findall(code) for name in pair}
    called = sorted({*_CALL.findall(code), *_TESTED_FOR.findall(code)} - helpers - own)
    func_ids = {name: btf.find(name, Kind.FUNC) for name in called}
    return {name: func_id for name, func_id in func_ids.items() if func_id}
