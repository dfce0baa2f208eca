# SPDX-License-Identifier: Apache-2.0
"""Where results come from: the command line, the version, the kernel and the CPU."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from ..tools.version import version


def provenance() -> dict[str, str]:
    """What the first line of results says of this run and this machine."""
    return {
        "version": version(),
        "command": shlex.join(["ghostbpf", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "cpu_model": _cpu_model(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "Model", "cpu model")):
            return line.partition(":")[2].strip()
    return os.uname().machine
