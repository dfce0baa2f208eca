# SPDX-License-Identifier: Apache-2.0
"""One cell of a sweep in a process of its own: the request is JSON on stdin, and the cell's row on stdout.

It ends with its parent, and then leaves no scheduler behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ...loaders import libc
from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ...schedulers.enclave import check_cpus
from ...tools.version import version
from ..bench.running import Interrupted
from ..journal import Row
from . import database, sweep
from .cli_options import interruptible
from .options import RocksdbOptions
from .sweeps import SWEEPS, Cell, Plan, candidates

_PR_SET_PDEATHSIG = 1


def request(plan: Plan, schedulers: tuple[str, ...], policies: tuple[str, ...]) -> Row:
    """What a plan is made of, for plan_of() on another machine."""
    return {
        "version": version(),
        "sweep": plan.sweep.name,
        "schedulers": schedulers,
        "policies": policies,
        "cpus": str(plan.cpus),
        "options": plan.base.as_json(),
        "wait": plan.wait,
        "generator": plan.generator,
    }


def plan_of(given: Row) -> tuple[Plan, Cell]:
    """The plan of a request, and the cell that it asks for; raises GhostError."""
    if given["version"] != version():
        raise GhostError(f"this machine has ghostbpf {version()}, not {given['version']}")
    one, cpus, base = SWEEPS[given["sweep"]], CpuSet.parse(given["cpus"]), RocksdbOptions(**given["options"])
    check_cpus(cpus)
    compared = candidates(given["schedulers"], given["policies"], one, base.time_scale, cpus)
    cell = Cell(given["candidate"], given["throughput"])
    named = {candidate.name: candidate for candidate in compared}
    return Plan(one, named, [cell], cpus, base, given["wait"], given["generator"]), cell


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for the cell of a command that was killed, and which still runs on this machine."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def main() -> int:
    """Measure the cell of stdin."""
    given = json.load(sys.stdin)
    with interruptible():
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != given["parent"]:
            return 1
        try:
            plan, cell = plan_of(given)
            path = Path(plan.base.rocksdb_db_path)
            database.prepare(path, plan.base.entries, lambda line: None)
            with _alone(path):
                row = sweep.measure_cell(plan, cell)
        except GhostError as error:
            print(error, file=sys.stderr)
            return 1
        except Interrupted as end:
            return 128 + end.number
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
