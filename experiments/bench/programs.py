# SPDX-License-Identifier: Apache-2.0
"""The program with the workloads of our own.

``python -m ghostbpf.experiments.bench.programs`` compiles it beside its source, for guests, which have no compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...loaders.errors import GhostError
from ..native_programs import Program

SOURCE = Path(__file__).parent / "native" / "loads.c"


def _program() -> Program:
    return Program("loads", (SOURCE,), headers=(SOURCE.parent / "histogram.h",))


def loads() -> Path:
    """Our own loads; see Program.path()."""
    return _program().path()


if __name__ == "__main__":
    try:
        _program().set_up()
    except GhostError as error:
        sys.exit(f"error: {error}")
