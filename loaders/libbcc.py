# SPDX-License-Identifier: Apache-2.0
"""Where libbcc is, and its version."""

from __future__ import annotations

from pathlib import Path

from .errors import KernelUnsupported

_LIBRARY_DIRS = (
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
)


def library() -> Path:
    """The path of libbcc, whose resolved file name contains its version."""
    for directory in _LIBRARY_DIRS:
        path = Path(directory, "libbcc.so.0")
        if path.exists():
            return path.resolve()
    raise KernelUnsupported("bcc", "no libbcc.so.0 on this machine", hint="apt install python3-bpfcc")


def version() -> str:
    """libbcc's version, for example "0.31.0"."""
    return library().name.removeprefix("libbcc.so.")
