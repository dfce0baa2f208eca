# SPDX-License-Identifier: Apache-2.0
"""The results in rows: one for each workload, metric and candidate, compared with EEVDF and with an earlier run."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...loaders.errors import GhostError
from ..candidates import EEVDF
from ..exact_report import change
from . import figures
from .plan import AGAIN, Plan
from .rounds import Results
from .workloads import LOWER, Metric

#: Median by workload, metric and candidate.
Baseline = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class Summary:
    """One metric of one workload under one candidate.

    ``ratio`` is the median of the ratios to EEVDF of the same round, ``low`` and ``high`` its interval, and ``noise``
    how far EEVDF differs from itself, 0.05 for 5 %; None if there are too few rounds. ``noisy`` of ``rounds`` were
    marked.
    """

    workload: str
    metric: str
    unit: str
    better: str
    candidate: str
    rounds: int
    median: float
    min: float
    max: float
    ratio: float | None
    low: float | None
    high: float | None
    noise: float | None
    verdict: str | None
    noisy: int

    def as_row(self, baseline: Baseline | None) -> dict[str, Any]:
        """The JSON object; with ``baseline``, also the earlier median and the change in per cent."""
        row: dict[str, Any] = {"type": "summary", **asdict(self)}
        if baseline is not None:
            row["baseline"] = baseline.get((self.workload, self.metric, self.candidate))
            row["change"] = change(self.median, row["baseline"])
        return row


def summarize(plan: Plan, results: Results) -> list[Summary]:
    """A summary of each metric, and candidate that did not fail, with at least one round."""
    return [
        one
        for workload in plan.workloads
        if not results.is_dropped(workload.text)
        for metric in _metrics(plan, results, workload.text)
        for one in _of_metric(plan, results, workload.text, metric)
    ]


def _metrics(plan: Plan, results: Results, workload: str) -> list[Metric]:
    runs = results.measured[workload, EEVDF]
    return next(iter(runs.values())).metrics if runs else []


def _of_metric(plan: Plan, results: Results, workload: str, metric: Metric) -> Iterator[Summary]:
    values = {
        candidate.name: {
            number: next(one.value for one in measurement.metrics if one.name == metric.name)
            for number, measurement in results.measured[workload, candidate.name].items()
        }
        for candidate in plan.candidates
        if not results.has_failed(candidate.name)
    }
    noise = None
    compared = {name: _compare(plan.seed, own, values[EEVDF]) for name, own in values.items() if name != EEVDF}
    if (again := compared.get(AGAIN)) is not None:
        noise = figures.noise(*again)
    for name, own in values.items():
        if not own:
            continue
        ratio, bounds = compared.get(name) or (None, None)
        verdict = None
        if ratio is not None and noise is not None and name != AGAIN:
            verdict = figures.verdict(ratio, bounds, noise, lower_is_better=metric.better == LOWER)
        marked = sum(results.measured[workload, name][number].is_noisy for number in own)
        yield Summary(
            workload=workload,
            metric=metric.name,
            unit=metric.unit,
            better=metric.better,
            candidate=name,
            rounds=len(own),
            median=statistics.median(own.values()),
            min=min(own.values()),
            max=max(own.values()),
            ratio=ratio,
            low=bounds[0] if bounds else None,
            high=bounds[1] if bounds else None,
            noise=noise,
            verdict=verdict,
            noisy=marked,
        )


def _compare(
    seed: int, own: Mapping[int, float], eevdf: Mapping[int, float]
) -> tuple[float, tuple[float, float] | None] | None:
    """The median ratio of the rounds that both have, and its interval; None without such a round."""
    ratios = [own[number] / eevdf[number] for number in own if eevdf.get(number) and own[number] > 0]
    if not ratios:
        return None
    return statistics.median(ratios), figures.interval(ratios, random.Random(seed))


def read_baseline(path: Path) -> dict[tuple[str, str, str], float]:
    """The medians of an earlier run, from its ``--json`` lines; raises GhostError."""
    hint = "--baseline FILE, FILE from: ghostbpf bench … --json >FILE"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise GhostError(f"cannot read {path}: {reason}", hint=hint) from None
    medians = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if row["type"] == "summary":
                key = tuple(str(row[name]) for name in ("workload", "metric", "candidate"))
                medians[key[0], key[1], key[2]] = float(row["median"])
        except (ValueError, TypeError, KeyError) as error:
            raise GhostError(f"{path}:{number}: not a line of ghostbpf bench --json: {error}", hint=hint) from None
    if not medians:
        raise GhostError(f"{path} has no summary", hint=hint)
    return medians
