# SPDX-License-Identifier: Apache-2.0
"""Kernel objects, held by file descriptors; a pin in bpffs keeps an object after its descriptors are closed."""

from __future__ import annotations

import os
from pathlib import Path

from ._libbpf import check, cloexec, lib, opts
from .closing import Closing
from .uapi import BPF_F_RDONLY


class Handle(Closing):
    """Owns ``fd``, and closes it on close(), at the end of a with block, or when it is collected."""

    def __init__(self, fd: int) -> None:
        # A link inherited by a child would keep a scheduler attached until the child ends.
        self.fd = cloexec(fd) if fd >= 0 else fd

    def pin(self, path: str | Path) -> None:
        """Give the object a name in bpffs, so that it outlives this process."""
        check(lib.bpf_obj_pin(self.fd, str(path).encode()), f"pin {path}")

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()


def open_pinned(path: str | Path, *, read_only: bool = False) -> int:
    """A new descriptor for the object pinned at ``path``; a map's can be ``read_only``. Raises BpfError."""
    options = opts("bpf_obj_get_opts", file_flags=BPF_F_RDONLY if read_only else 0)
    return check(lib.bpf_obj_get_opts(str(path).encode(), options), f"open {path}")
