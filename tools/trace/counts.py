# SPDX-License-Identifier: Apache-2.0
"""Counters of events, and their growth between two reports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import click

#: How many of the largest counts to print.
TOP = click.Option(
    ["-n", "--top"], type=click.IntRange(1), default=20, show_default=True, help="Number of rows; JSON has all."
)


class Counters:
    """Counters that only grow, and their values at the last call."""

    def __init__(self) -> None:
        self._before: Mapping[Hashable, int] = {}

    def growth(self, now: Mapping[Any, int]) -> list[tuple[Any, int]]:
        """Counters that have grown since the last call, and by how much, the largest growth first."""
        grown = [(key, count - self._before.get(key, 0)) for key, count in now.items()]
        self._before = now
        return sorted(((key, more) for key, more in grown if more), key=lambda item: -item[1])
