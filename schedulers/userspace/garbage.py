# SPDX-License-Identifier: Apache-2.0
"""Collects an agent's cyclic garbage when it has time; Python's own collector would stop it at any time, for long."""

from __future__ import annotations

import gc
import time

_IDLE_S, _BUSY_S = 0.25, 1.0
#: An agent that is never idle spends at most 1/_SHARE of its time on collecting.
_SHARE = 400


class Garbage:
    """Exempts all objects made so far from collection for ever; collect() collects those made later."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._ended, self._took_s = time.monotonic(), 0.0

    def collect(self, *, idle: bool) -> bool:
        """Collect if that is due, which it is sooner if the agent is ``idle``; returns whether it collected."""
        pause = _IDLE_S if idle else max(_BUSY_S, _SHARE * self._took_s)
        began = time.monotonic()
        if began < self._ended + pause:
            return False
        gc.collect()
        self._ended = time.monotonic()
        self._took_s = self._ended - began
        return True
