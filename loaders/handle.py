# SPDX-License-Identifier: Apache-2.0
"""A kernel object held by a file descriptor; a pin in bpffs keeps the object when the descriptor goes."""

from __future__ import annotations

import os
from pathlib import Path

from ._libbpf import check, cloexec, lib, opts
from .closing import Closing
from .uapi import BPF_F_RDONLY


class Handle(Closing):
    """Owns ``fd`` and closes it: on close(), at the end of a with block, or with the object itself."""

    def __init__(self, fd: int) -> None:
        # An inherited link would keep a scheduler attached for as long as any child lives.
        self.fd = cloexec(fd) if fd >= 0 else fd

    def pin(self, path: str | Path) -> None:
        """Give the object a name in bpffs, so that it outlives this process."""
        check(lib.bpf_obj_pin(self.fd, str(path).encode()), f"pin {path}")

    def close(self) -> None:
        """Drop this process's reference; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()


def open_pinned(path: str | Path, *, read_only: bool = False) -> int:
    """A new descriptor for the object pinned at ``path``, of a map perhaps one to read with only; raises BpfError."""
    how = opts("bpf_obj_get_opts", file_flags=BPF_F_RDONLY if read_only else 0)
    return check(lib.bpf_obj_get_opts(str(path).encode(), how), f"open {path}")
