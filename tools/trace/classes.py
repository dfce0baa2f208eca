# SPDX-License-Identifier: Apache-2.0
"""The address of the ext scheduling class: a task is in the class if its sched_class is this one."""

from __future__ import annotations

import functools
from pathlib import Path

from ...loaders import kernel_types
from ...loaders.btf import Kind
from ...loaders.errors import GhostError

_KALLSYMS = Path("/proc/kallsyms")


@functools.cache
def ext_class() -> dict[str, int]:
    """LINK_CONSTANT ``ext_class``; 0, which is no class, if the kernel has no sched_ext.

    Raises GhostError if the kernel hides its addresses.
    """
    if kernel_types.find("sched_ext_ops", Kind.STRUCT) is None:
        return {"ext_class": 0}
    with _KALLSYMS.open(encoding="utf-8") as symbols:
        address = next((int(line.split()[0], 16) for line in symbols if line.split()[2] == "ext_sched_class"), 0)
    if not address:
        raise GhostError("the kernel hides its addresses", hint="run it as root, with sysctl kernel.kptr_restrict=1")
    return {"ext_class": address}
