# SPDX-License-Identifier: Apache-2.0
"""What this process may do, by capabilities(7)."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import PermissionMissing

#: Those that schedulers in BPF need, some or all: their bits in /proc/PID/status.
NUMBERS = {"CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23, "CAP_PERFMON": 38, "CAP_BPF": 39}

# Before CAP_BPF and CAP_PERFMON there was only this one, and the kernel still takes it for either.
_INSTEAD = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN"}


def held() -> set[str]:
    """The capabilities of NUMBERS that are in effect."""
    match = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)
    bits = int(match[1], 16) if match else 0
    return {name for name, bit in NUMBERS.items() if bits >> bit & 1}


def need(action: str, *names: str) -> None:
    """Raise PermissionMissing where one of ``names`` is missing; ``action`` is what cannot be done then."""
    have = held()
    if missing := [name for name in names if name not in have and _INSTEAD.get(name) not in have]:
        raise PermissionMissing(" and ".join(missing), action)
