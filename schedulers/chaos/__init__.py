# SPDX-License-Identifier: Apache-2.0
"""Chaos: random decisions that a seed repeats, to find races in programs. bpf/policies/chaos.bpf.c holds them."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from ...loaders.maps import Map, MmapArray
from ..policy import Option, Policy, duration_ns

if TYPE_CHECKING:
    from ..enclave import Enclave

#: The text that stands for a seed of its own in each run, and how many seeds these are chosen from: short to type.
RANDOM = "random"
_SEEDS = 10**6
_MOST_SEED = 2**64 - 1


class Action(IntEnum):
    """What was done to a task; ``enum chaos_action`` in bpf/policies/chaos.h."""

    DELAY = 1
    PREEMPT = 2
    REORDER = 3
    MIGRATE = 4
    DEGRADE = 5


@dataclass(frozen=True)
class Decision:
    """A decision for ``task``, which has this name in each run, at its n-th ``wakeup`` and the n-th ``turn`` since.

    ``ns``: for how long the task is held back (DELAY, PREEMPT at an enqueue), or may run (PREEMPT, DEGRADE).
    """

    task: int
    wakeup: int
    turn: int
    action: Action
    ns: int


def seed(text: str) -> int:
    """A seed from its number, or a new one from "random"; raises ValueError."""
    if text == RANDOM:
        return secrets.randbelow(_SEEDS)
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= _MOST_SEED:
        raise ValueError(f'bad seed "{text}": a number from 0 to 2^64 - 1, or {RANDOM}')
    return value


def chance(text: str) -> int:
    """1/100 of a percent, from "12.5%" or "0"; raises ValueError."""
    try:
        value = round(float(text.removesuffix("%")) * 100)
    except (ValueError, OverflowError):
        value = -1
    if not 0 <= value <= 10000:
        raise ValueError(f'bad chance "{text}": from 0% to 100%')
    return value


CHAOS = Policy(
    "chaos",
    "Random decisions that a seed repeats: finds races in programs",
    (
        Option("seed", "seed", seed, RANDOM, "repeats the decisions of a run"),
        Option("delay", "delay", chance, "10%", "how often a task that wakes is held back"),
        Option(
            "hold", "delay_ns", functools.partial(duration_ns, most_s=1), "50ms", "for how long a task is held at most"
        ),
        Option("preempt", "preempt", chance, "10%", "how often a turn is cut off, and the task held back"),
        Option("reorder", "reorder", chance, "25%", "how often a task that waits goes to the head"),
        Option("migrate", "migrate", chance, "25%", "how often a task wakes on a random idle CPU"),
        Option("degrade", "degrade", chance, "25%", "how often a turn has a shorter slice"),
        Option(
            "slice",
            "slice_ns",
            functools.partial(duration_ns, most_s=0.1),
            "20ms",
            "how long a task runs before it goes to the tail",
        ),
    ),
    queues=True,
)


def decisions(enclave: Enclave) -> list[Decision]:
    """The last decisions for tasks of ``enclave``, which chaos schedules, in no order."""
    path = enclave.path / f"policy_{enclave.live_bank}" / "decisions"
    with MmapArray(Map.open(path), CHAOS.params_type[0], "struct chaos_decision") as records:
        return [
            Decision(int(record.task), int(record.wakeup), int(record.turn), Action(record.action), int(record.ns))
            for record in records
            if record.action
        ]
