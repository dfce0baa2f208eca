# SPDX-License-Identifier: Apache-2.0
"""The capabilities(7) of this process."""

from __future__ import annotations

import re
from pathlib import Path

from . import libc
from .errors import PermissionMissing

#: The capabilities that BPF schedulers use, and their bits in /proc/PID/status.
NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_NET_ADMIN": 12,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
#: Those without which a command may fail; with the others it does more.
NEEDED = ("CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_PERFMON", "CAP_BPF")

# CAP_SYS_ADMIN precedes CAP_BPF and CAP_PERFMON, and the kernel still accepts it for either.
_SUBSTITUTES = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN"}


def held() -> set[str]:
    """The effective capabilities among NUMBERS."""
    match = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
    bits = int(match[1], 16) if match else 0
    return {name for name, bit in NUMBERS.items() if bits >> bit & 1}


def need(action: str, *names: str) -> None:
    """Raise PermissionMissing if one of ``names`` is missing; ``action`` is what needs them."""
    effective = held()
    if missing := [name for name in names if name not in effective and _SUBSTITUTES.get(name) not in effective]:
        raise PermissionMissing(" and ".join(missing), action)


def keep_only(*names: str) -> None:
    """Drop all other capabilities of the calling thread for good: programs that it runs do not get them back."""
    libc.gain_no_privileges()
    libc.limit_capabilities(sum(1 << NUMBERS[name] for name in names))
