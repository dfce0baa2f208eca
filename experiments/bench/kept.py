# SPDX-License-Identifier: Apache-2.0
"""A benchmark's file: the lines of ``--json``, each on the disk once measured, from which ``--resume`` goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import journal
from ..journal import Journal, Row
from .rounds import Failure, Results
from .running import Measurement
from .workloads import HIGHER, LOWER, Metric

#: What two runs must share for one to resume the other.
_SAME = ("kernel", "machine", "cpus", "workloads", "candidates", "rounds", "seed")


def measurement_row(number: int, workload: str, candidate: str, measurement: Measurement) -> Row:
    """The line of a run in round ``number``."""
    return {
        "type": "measurement",
        "round": number,
        "workload": workload,
        "candidate": candidate,
        "seconds": round(measurement.seconds, 6),
        "others": round(measurement.others, 3),
        "noisy": measurement.is_noisy,
        "metrics": {
            one.name: {"value": one.value, "unit": one.unit, "better": one.better} for one in measurement.metrics
        },
    }


def failure_row(failure: Failure) -> Row:
    """The line of a candidate or a workload that is left out."""
    return {"type": "failure", **vars(failure)}


def seed(path: Path) -> int | None:
    """The seed of the run in ``path``, None if there is none yet; raises GhostError."""
    return journal.read(path, _check).run["seed"] if path.exists() else None


def resume(path: Path, run: Mapping[str, Any]) -> tuple[Journal, Results]:
    """The file and what it has; what failed is tried again. Raises GhostError if it is of another run."""
    kept, results = journal.resume(path, run, _SAME, _check), Results()
    for row in kept.rows:
        if row["type"] == "measurement":
            results.measured[row["workload"], row["candidate"]][row["round"]] = _measurement(row)
    return kept, results


def _check(row: Row) -> None:
    if row["type"] == "run":
        if missing := [name for name in _SAME if name not in row]:
            raise ValueError(f"the first line of a benchmark has {', '.join(missing)}")
    elif row["type"] == "measurement":
        _measurement(row)
        row["workload"], row["candidate"], row["round"]
    elif row["type"] not in ("failure", "summary"):
        raise ValueError(f"it is no measurement: {row['type']}")


def _measurement(row: Row) -> Measurement:
    metrics = [
        Metric(name, one["unit"], float(one["value"]), {LOWER: LOWER, HIGHER: HIGHER}[one["better"]])
        for name, one in row["metrics"].items()
    ]
    return Measurement(metrics, float(row["seconds"]), float(row["others"]))
