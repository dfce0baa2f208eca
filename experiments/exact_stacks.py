# SPDX-License-Identifier: Apache-2.0
"""What an off-CPU tracer costs at least: the parts of one, ghostbpf's and bcc's, in instructions, in one run.

    ghostbpf vm --exact --cpus 2 --with-headers -- python3 -m ghostbpf.experiments.exact_stacks

perf's pipe runs on one CPU, so an operation is two switches, and none of them is to an idle CPU. "BPF" is what the
kernel counts as the programs' run time, "in all" how many more instructions an operation takes than without a tracer,
which includes how the program is called. In such a guest, and nowhere else, the figures are instructions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from ..loaders import Link, Module, Target, compile
from .bench_tracers import DoesNotStart, tracing
from .exact_pipe import OPERATIONS, bpf_runs, pipe
from .measure import bpf_stats

_PARTS = ("nothing", "kernel_stack", "user_stack", "both_stacks", "all_parts")
_OURS = (sys.executable, "-m", "ghostbpf.tools.cli", "trace", "offcputime")
_THEIRS = "offcputime-bpfcc"
_SOURCE = Path(__file__).with_name("stacks.bpf.c")


def main() -> int:
    """Print a table: each part, and the two tracers."""
    pipe(OPERATIONS, _join)
    without = pipe(OPERATIONS, _join)
    rows = [_row(part, without, _part(part)) for part in _PARTS]
    rows.append(_row("ghostbpf trace offcputime", without, tracing([*_OURS])))
    try:
        theirs = shutil.which(_THEIRS) or shutil.which(_THEIRS, path="/usr/sbin") or _THEIRS
        rows.append(_row(_THEIRS, without, tracing([theirs])))
    except (DoesNotStart, FileNotFoundError) as error:
        print(f"{_THEIRS}: {error}", file=sys.stderr)
    print(f"pipe without a tracer: {without:.0f} instructions per operation\n")
    print(tabulate(rows, headers=["instructions per switch", "BPF", "in all"], floatfmt=".0f"))
    return 0


def _join(pid: int) -> None:
    os.sched_setaffinity(pid, {0})


def _row(name: str, without: float, tracer: contextlib.AbstractContextManager[object]) -> tuple[str, float, float]:
    print(f"{name} …", file=sys.stderr, flush=True)
    known = bpf_runs().keys()
    with tracer:
        pipe(OPERATIONS // 10, _join)  # the first switches fill maps
        in_all = pipe(OPERATIONS, _join) - without
        with bpf_stats():
            before = bpf_runs()
            pipe(OPERATIONS, _join)
            after = bpf_runs()
    spent = sum(ns - before.get(key, (0, 0))[1] for key, (_, ns) in after.items() if key not in known)
    return name, spent / OPERATIONS / 2, in_all / 2


@contextlib.contextmanager
def _part(function: str) -> Iterator[None]:
    with contextlib.closing(Module(compile(_SOURCE))) as module:
        program = module.load(function, Target.tracepoint("sched_switch"))
        with program, Link.tracepoint(program):
            yield


if __name__ == "__main__":
    sys.exit(main())
