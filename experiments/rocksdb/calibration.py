# SPDX-License-Identifier: Apache-2.0
"""How much slower than a usual machine this one is: the factor by which experiments stretch all times together."""

from __future__ import annotations

import json
import subprocess

from ...loaders.errors import GhostError
from .options import rounded
from .programs import ANTAGONIST

#: Nanoseconds on a usual machine: a dependent multiplication and addition; and a round trip of two threads on one CPU,
#: which is two context switches and two system calls.
_COMPUTATION_NS, _SWITCHES_NS = 1.5, 5_000.0

AUTO = "auto"


def time_scale(text: str) -> float:
    """The time scale that ``text`` names: a number from 1 on, or AUTO. Raises ValueError, and GhostError."""
    if text == AUTO:
        return measured()
    try:
        scale = float(text)
    except ValueError:
        scale = 0
    if not 1 <= scale <= 10_000:
        raise ValueError(f'"{text}": write auto, or a number from 1 to 10000')
    return scale


def measured() -> float:
    """The larger of two ratios to a usual machine: that of computation, and that of context switches."""
    done = subprocess.run([ANTAGONIST.path(), "calibrate"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GhostError(f"the calibration failed: {done.stderr.strip()}")
    times = json.loads(done.stdout)
    return rounded(max(times["computation"] / _COMPUTATION_NS, times["switches"] / _SWITCHES_NS))
