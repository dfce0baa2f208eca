# SPDX-License-Identifier: Apache-2.0
"""The example of a program with a race; docs/chaos.md is about it.

``python -m ghostbpf.experiments.races`` compiles it beside its source, for guests, which have no compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..loaders.errors import GhostError
from .native_programs import Program

TICKETS = Program("tickets", (Path(__file__).parents[1] / "examples" / "tickets.c",))

if __name__ == "__main__":
    try:
        TICKETS.set_up()
    except GhostError as error:
        sys.exit(f"error: {error}")
