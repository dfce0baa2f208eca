# SPDX-License-Identifier: Apache-2.0
"""Two samples that were recorded in a guest, seconds apart: an enclave under Biff, one with an agent, and their load.

``python tests/host/top_recording.py FILE`` in a guest records others.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from ghostbpf.schedulers.agents import AgentState
from ghostbpf.schedulers.core import Activity, Task
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave_view import Counters
from ghostbpf.schedulers.snapshot import CpuState, EnclaveState, Snapshot
from ghostbpf.tools.top.sample import CpuTime, Sample, read

FILE = Path(__file__).with_suffix(".json")


def load(path: Path = FILE) -> list[Sample]:
    """The samples of a recording."""
    return [_sample(row) for row in json.loads(path.read_text())]


def record(path: Path, count: int = 2, seconds: float = 1.0) -> None:
    """Record ``count`` samples, ``seconds`` apart."""
    rows = []
    for _ in range(count):
        sample = read()
        assert sample.error is None
        rows.append(dataclasses.asdict(sample))
        time.sleep(seconds)
    path.write_text(json.dumps(rows) + "\n")


def _sample(row: dict[str, Any]) -> Sample:
    state = row["state"]
    snapshot = Snapshot(
        state["state"],
        full=state["full"],
        enclaves=tuple(map(_enclave, state["enclaves"])),
        events=state["events"],
        tasks=tuple(map(_task, state["tasks"])),
        cpus={int(cpu): CpuState(**values) for cpu, values in state["cpus"].items()},
    )
    return Sample(row["at"], snapshot, {int(cpu): CpuTime(**values) for cpu, values in row["times"].items()})


def _task(row: dict[str, Any]) -> Task:
    return Task(**{**row, "original": tuple(row["original"]), "activity": Activity(**row["activity"])})


def _cpus(row: dict[str, int]) -> CpuSet:
    return CpuSet(cpu for cpu in range(row["bits"].bit_length()) if row["bits"] >> cpu & 1)


def _enclave(row: dict[str, Any]) -> EnclaveState:
    return EnclaveState(
        **{
            **row,
            "cpus": _cpus(row["cpus"]),
            "granted": _cpus(row["granted"]),
            "counters": Counters(**row["counters"]),
            "per_cpu": {int(cpu): Counters(**values) for cpu, values in row["per_cpu"].items()},
            "stats": None,
            "agent": None if row["agent"] is None else AgentState(**row["agent"]),
        }
    )


if __name__ == "__main__":
    record(Path(sys.argv[1]))
