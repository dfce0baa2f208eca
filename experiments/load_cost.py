# SPDX-License-Identifier: Apache-2.0
"""What it costs to load the core and a policy, for each BPF program: instructions of the kernel, most of its verifier.

    ghostbpf vm --exact --kernel oldest --cpus 2 --precompile -- python3 -m ghostbpf.experiments.load_cost POLICY...

In such a guest, and nowhere else, the figures are instructions. "followed" is how many of a program's instructions the
verifier followed, on all paths.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

from tabulate import tabulate

from ..loaders import Module, Program, Target, kernel_types
from ..loaders._libbpf import info_by_fd
from ..schedulers.enclave import Enclaves
from ..schedulers.registry import POLICIES

_SHOWN = 12


def main(names: list[str]) -> int:
    """Print a table for each policy: the dearest programs, and the sum of all."""
    for name in names:
        rows = sorted(loads(name), key=lambda row: -row[-1])
        total = ("all", *map(sum, zip(*(row[1:] for row in rows), strict=True)))
        print(f"{name}, {len(rows)} programs\n")
        print(tabulate([*rows[:_SHOWN], total], headers=["program", "length", "followed", "instructions"]), end="\n\n")
    return 0


def loads(policy: str) -> list[tuple[str, int, int, int]]:
    """Attach a core with an enclave of ``policy``; the rows of the table, also those of what the agent loads."""
    load = Module.load
    with tempfile.TemporaryFile("a+") as log:

        def timed(self: Module, function: str, target: Target) -> Program:
            before = time.thread_time_ns()
            program = load(self, function, target)
            spent = time.thread_time_ns() - before
            row = function, len(self.object.functions[function].code) // 8, _followed(program), spent
            print(json.dumps(row), file=log, flush=True)  # one write: threads and processes share the file
            return program

        Module.load = timed  # type: ignore[method-assign]
        try:
            with Enclaves.temporary(POLICIES[policy]):
                pass
        finally:
            Module.load = load  # type: ignore[method-assign]
        log.seek(0)
        return [tuple(json.loads(line)) for line in log]


def _followed(program: Program) -> int:
    at = kernel_types.struct("bpf_prog_info").members["verified_insns"].offset
    return int.from_bytes(info_by_fd(program.fd, 512)[at : at + 4], "little")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["biff"]))
