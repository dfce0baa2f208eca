# SPDX-License-Identifier: Apache-2.0
"""Cells of a sweep on the workers of a Dask cluster: on each machine one at a time, for a cell owns its scheduler.

A worker runs a cell in a process of its own (one_cell), without what Dask sets in the environment of its workers. If a
worker ends, its cell is measured again by another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed

from ...loaders.errors import GhostError
from ..bench.rounds import WORKLOAD
from ..bench.running import Interrupted, interruption
from ..journal import Row
from .store import Results
from .sweep import Observer
from .sweeps import Cell, Plan

#: What Dask sets for its workers, which would make results on a worker differ from local ones.
_SET_BY_DASK = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
_CONNECT_S, _POLL_S = 30, 0.2
#: How long a cluster may have no worker.
_EMPTY_S = 60.0
#: How often a cell is begun whose worker ends.
_ATTEMPTS = 3
_SHOWN = 600

#: Dask has no types for what is called here.
_Client: Any = distributed.Client

# ---- on a worker ----

_cells: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


def machine() -> str:
    """What identifies this kernel: workers of one machine share its scheduler."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def environment() -> dict[str, str]:
    """The environment of a cell."""
    return {name: value for name, value in os.environ.items() if name not in _SET_BY_DASK}


def run_cell(request: Row) -> Row:
    """Measure a cell in a process of its own; raises RuntimeError with what that said."""
    began = time.time()
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.one_cell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        with _lock:
            _cells.add(child)
        try:
            out, said = child.communicate(json.dumps({**request, "parent": os.getpid()}))
        finally:
            with _lock:
                _cells.discard(child)
    if child.returncode:
        raise RuntimeError(said.strip()[-_SHOWN:] or f"the cell ended with status {child.returncode}")
    where = {"host": os.uname().nodename, "kernel": os.uname().release, "pid": os.getpid()}
    row: Row = json.loads(out)
    return {**row, "worker": {**where, "began": began, "ended": time.time()}}


def stop_cells() -> None:
    """Ask the cells of this worker to end."""
    with _lock:
        for child in _cells:
            child.send_signal(signal.SIGTERM)


# ---- the command's side ----


@dataclass(frozen=True)
class _Running:
    cell: Cell
    worker: str
    machine: str


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        client = _Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise GhostError(
            f"cannot connect to a Dask scheduler at {address}: {str(error).splitlines()[0][:200]}",
            hint="dask scheduler; on each machine: dask worker ADDRESS:8786",
        ) from None
    try:
        yield client
    finally:
        client.close(timeout=5)


def measure(plan: Plan, request: Row, results: Results, observer: Observer, address: str) -> int | None:
    """As sweep.measure(), on the workers of the cluster at ``address``; ``request`` is what workers make a plan of."""
    todo = deque(cell for cell in plan.cells if (cell.candidate, cell.throughput) not in results.cells)
    with _connected(address) as client:
        run = _Run(client, plan, request, results, observer, todo)
        try:
            run.all()
        except Interrupted as end:
            return end.number
        finally:
            run.stop()
    return None


class _Run:
    """The cells that are left, and those that workers measure now."""

    def __init__(
        self, client: Any, plan: Plan, request: Row, results: Results, observer: Observer, todo: deque[Cell]
    ) -> None:
        self._client, self._plan, self._request = client, plan, request
        self._results, self._observer, self._todo = results, observer, todo
        self._running: dict[Any, _Running] = {}
        self._machines: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._attempts: Counter[Cell] = Counter()
        self._seen = time.monotonic()

    def all(self) -> None:
        """Measure all cells; raises Interrupted, and GhostError if there is no worker, or results cannot be kept."""
        while self._todo or self._running:
            interruption()
            self._look_at_workers()
            self._start()
            time.sleep(_POLL_S)
            for future in [one for one in self._running if one.done()]:
                self._ended(future, self._running.pop(future))

    def stop(self) -> None:
        """End what still runs."""
        if self._running:
            workers = [one.worker for one in self._running.values() if one.worker in self._machines]
            self._client.cancel(list(self._running))
            self._client.run(stop_cells, workers=workers, on_error="ignore")

    def _look_at_workers(self) -> None:
        present = set(self._client.nthreads())
        if present:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _EMPTY_S:
            raise GhostError("the Dask cluster has no worker", hint="on each machine: dask worker ADDRESS:8786")
        if new := present - self._machines.keys():
            found = self._client.run(machine, workers=sorted(new), on_error="return")
            self._machines |= {worker: name for worker, name in found.items() if isinstance(name, str)}
            if broken := [error for error in found.values() if isinstance(error, ImportError)]:
                raise GhostError(f"a worker has no ghostbpf: {broken[0]}", hint="install the same version there")
        for gone in self._machines.keys() - present:
            del self._machines[gone]
        for future, running in list(self._running.items()):
            if running.worker not in self._machines:
                del self._running[future]
                self._client.cancel([future])
                self._again(running.cell, f"its worker {running.worker} has ended")

    def _again(self, cell: Cell, reason: str) -> None:
        if self._attempts[cell] < _ATTEMPTS:
            self._todo.appendleft(cell)
        else:
            self._keep(cell, _failure(cell, f"{reason}, {_ATTEMPTS} times"))

    def _start(self) -> None:
        """Give each machine that measures nothing a cell, through the worker that has waited for longest."""
        busy = {running.machine for running in self._running.values()}
        for worker in sorted(self._machines, key=lambda one: self._used.get(one, 0.0)):
            if self._machines[worker] in busy:
                continue
            while self._todo and self._todo[0].candidate in self._results.failures:
                self._todo.popleft()
            if not self._todo:
                return
            cell = self._todo.popleft()
            request = {**self._request, "candidate": cell.candidate, "throughput": cell.throughput}
            left = sum(self._plan.seconds(one) for one in (cell, *self._todo)) / len({*self._machines.values()})
            self._observer.starts(self._plan.cells.index(cell) + 1, cell, left)
            self._attempts[cell] += 1
            self._used[worker] = time.monotonic()
            future = self._client.submit(
                run_cell, request, workers=[worker], allow_other_workers=False, pure=False, retries=0
            )
            self._running[future] = _Running(cell, worker, self._machines[worker])
            busy.add(self._machines[worker])

    def _ended(self, future: Any, running: _Running) -> None:
        if future.status == "finished":
            self._keep(running.cell, future.result())
        elif running.worker not in self._client.nthreads():
            self._again(running.cell, f"its worker {running.worker} has ended")
        else:
            self._keep(running.cell, _failure(running.cell, f"on {running.worker}: {future.exception()}"))

    def _keep(self, cell: Cell, row: Row) -> None:
        self._results.add(row)
        if row["type"] == "failure":
            self._observer.failed(row)
        else:
            self._observer.measured(cell, row)


def _failure(cell: Cell, reason: str) -> dict[str, Any]:
    named = {"candidate": cell.candidate, "throughput": cell.throughput}
    return {"type": "failure", "kind": WORKLOAD, **named, "reason": reason, "hint": None}
