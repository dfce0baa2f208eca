# SPDX-License-Identifier: Apache-2.0
"""A frame as the JSON document of ``--once --json``, which schema.json describes.

Ids of 64 bits are strings, in hexadecimal: as numbers, jq and other readers of JSON would round those above 2^53.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .frame import CpuRow, EnclaveRow, Frame, TaskRow
from .health import verdict


def document(frame: Frame, tasks: Iterable[TaskRow]) -> dict[str, Any]:
    """``frame`` with these of its ``tasks``."""
    ejection = frame.ejection
    return {
        "at": round(time.time(), 3),
        "seconds": round(frame.seconds, 3),
        "state": frame.state,
        "full_mode": frame.full,
        "error": None if frame.error is None else str(frame.error),
        "ejection": None
        if ejection is None
        else {
            "reason": ejection.reason,
            "message": ejection.message,
            "ago": round(time.clock_gettime(time.CLOCK_BOOTTIME) - ejection.at_ns / 1e9, 1),
        },
        "enclaves": [_enclave(row) for row in frame.enclaves],
        "cpus": [_cpu(row) for row in frame.cpus],
        "tasks": [_task(row) for row in tasks],
        "events": dict(frame.events),
    }


def _enclave(row: EnclaveRow) -> dict[str, Any]:
    health = verdict(row)
    return {
        "enclave": row.id,
        "policy": row.policy,
        "cpus": str(row.cpus),
        "tree": row.tree,
        "tasks": row.tasks,
        "running": row.running,
        "waiting": row.waiting,
        "queued": row.queued,
        "longest_wait_ns": row.longest_wait_ns,
        "busy_cpus": _rounded(row.busy),
        "switches": _rounded(row.switches),
        "preempted": _rounded(row.preempted),
        "latency_ns": _rounded(row.latency_ns),
        "departures": row.departures,
        "fell_back": row.fell_back,
        "agent": None if row.agent is None else vars(row.agent),
        "healthy": health.is_well,
        "health": health.text,
    }


def _cpu(row: CpuRow) -> dict[str, Any]:
    return {
        "cpu": row.cpu,
        "enclave": row.enclave,
        "state": row.state,
        "tid": row.tid,
        "comm": row.comm,
        "busy": _rounded(row.busy),
        "ext": _rounded(row.ext),
        "depth": row.depth,
    }


def _task(row: TaskRow) -> dict[str, Any]:
    return {
        "tid": row.tid,
        "pid": row.pid,
        "comm": row.comm,
        "enclave": row.enclave,
        "cpu": row.cpu,
        "state": row.state,
        "elsewhere": row.elsewhere,
        "queue": hex(row.queue) if row.queue else None,
        "queue_name": row.queue_name,
        "cpu_share": _rounded(row.cpu_share),
        "wait_share": _rounded(row.wait_share),
        "latency_ns": _rounded(row.latency_ns),
        "runs": _rounded(row.runs),
        "waiting_ns": row.waiting_ns,
        "waited_ns": row.waited_ns,
        "runtime_ns": row.runtime_ns,
        "migrations": row.migrations,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
