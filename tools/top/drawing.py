# SPDX-License-Identifier: Apache-2.0
"""Bars and sparklines of characters, and text that fills a given width of a terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable

#: From 0 to the largest value, for terminals with UTF-8 and for others.
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def has_blocks() -> bool:
    """Whether stdout's encoding has the characters of sparklines."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def sparkline(values: Iterable[float], width: int, top: float | None = None, *, blocks: bool = True) -> str:
    """The last ``width`` of ``values``, the newest on the right; ``top`` (default: the largest of them) is full height.

    The scale begins at 0, so that a constant is not drawn as 0; a value above 0 is never drawn as a blank.
    """
    shown = list(values)[-width:]
    levels = _BLOCKS if blocks else _ASCII
    full = max(shown, default=0.0) if top is None else top
    return "".join(levels[_level(value, full, len(levels) - 1)] for value in shown).rjust(width)


def _level(value: float, full: float, steps: int) -> int:
    if value <= 0 or full <= 0:
        return 0
    return max(1, min(round(value / full * steps), steps))


def bar(share: float | None, part: float | None, width: int) -> str:
    """``[####::   ]``: ``share`` of 1 is filled, ``part`` of it with another character."""
    inner = width - 2
    if share is None:
        return f"[{'':{inner}}]"
    filled = min(round(share * inner), inner)
    first = min(round((part or 0.0) * inner), filled)
    return f"[{'#' * first}{':' * (filled - first)}{' ' * (inner - filled)}]"


def width_of(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    return sum(_columns(character) for character in text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """``text`` in exactly ``width`` columns: cut, with a ``+`` at the end, or padded."""
    if (taken := width_of(text)) > width:
        kept, taken = "", 0
        for character in text:
            if taken + _columns(character) > width - 1:
                break
            kept, taken = kept + character, taken + _columns(character)
        text, taken = f"{kept}+", taken + 1
    padding = " " * (width - taken)
    return padding + text if right else text + padding


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
