# SPDX-License-Identifier: Apache-2.0
"""Counts that only grow, looked at again and again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any


class Counted:
    """Remembers the last look."""

    def __init__(self) -> None:
        self._before: Mapping[Hashable, int] = {}

    def most(self, now: Mapping[Any, int]) -> list[tuple[Any, int]]:
        """By how much each has grown since the look before, those that have, the most first."""
        grown = [(key, count - self._before.get(key, 0)) for key, count in now.items()]
        self._before = now
        return sorted(((key, more) for key, more in grown if more), key=lambda item: -item[1])
