# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's KVM can run a stock kernel: tried once with a real boot, and remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .cache import read_json, stage, write_json
from .errors import VmError

TRIAL_SECONDS = 10.0
KVM = Path("/dev/kvm")


def choose(wish: str, memory: Path, qemu: str, trial: Callable[[], int]) -> str:
    """`kvm` or `tcg` for the wish `auto`, `kvm` or `tcg`.

    /dev/kvm can exist and open and still be unable to run a stock kernel (nested, or a paravirtual imitation), so
    for `auto` a guest is booted with it by `trial`, once for each host kernel and QEMU version; `memory` keeps the
    answers.
    """
    if wish != "auto":
        return wish
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    key = f"{os.uname().release} qemu-{qemu}"
    answers = read_json(memory)
    if not isinstance(answers, dict):
        answers = {}
    if answers.get(key) not in ("kvm", "tcg"):
        with stage(f"trying {KVM} (once)"):
            answers[key] = "kvm" if _works(trial) else "tcg"
        write_json(memory, answers)
    return str(answers[key])


def _works(trial: Callable[[], int]) -> bool:
    try:
        return trial() == 0
    except VmError:
        return False
