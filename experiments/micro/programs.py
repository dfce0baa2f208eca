# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks' program in C.

``python -m ghostbpf.experiments.micro.programs`` compiles it beside its sources, for guests, which have no compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...hints import INCLUDE
from ...loaders.errors import GhostError
from ...loaders.source import BPF_DIR
from ..native_programs import Program

_NATIVE = Path(__file__).parent / "native"
_COMMON = _NATIVE.parents[1] / "rocksdb" / "native" / "common.h"

MICRO = Program(
    "micro",
    (_NATIVE / "micro.c", _NATIVE / "simple.c"),
    (_NATIVE / "micro.h", _COMMON, INCLUDE / "ghostbpf_hints.h", BPF_DIR / "hints.h"),
    ("-lm",),
)

if __name__ == "__main__":
    try:
        MICRO.set_up()
    except GhostError as error:
        sys.exit(f"error: {error}")
