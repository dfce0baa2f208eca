# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's KVM can run a stock kernel: tested once with a boot, and cached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .cache import read_json, stage, write_json
from .errors import VmError

TRIAL_SECONDS = 10.0
KVM = Path("/dev/kvm")


def choose(accel: str, results: Path, qemu: str, trial: Callable[[], int]) -> str:
    """`kvm` or `tcg` for the option `accel`, which is `auto`, `kvm` or `tcg`.

    /dev/kvm can exist and open and yet be unable to run a stock kernel (nested or paravirtual KVM). So for `auto`,
    `trial` boots a guest with it, once for each host kernel and QEMU version; the file `results` caches the outcomes.
    """
    if accel != "auto":
        return accel
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    key = f"{os.uname().release} qemu-{qemu}"
    cached = read_json(results)
    if not isinstance(cached, dict):
        cached = {}
    if cached.get(key) not in ("kvm", "tcg"):
        with stage(f"testing {KVM} (once)"):
            cached[key] = "kvm" if _works(trial) else "tcg"
        write_json(results, cached)
    return str(cached[key])


def _works(trial: Callable[[], int]) -> bool:
    try:
        return trial() == 0
    except VmError:
        return False
