# SPDX-License-Identifier: Apache-2.0
"""How a command line names what is measured: NAME=COMMAND, and NAME:option=value,option=value."""

from __future__ import annotations

import re
import shlex


def named_command(text: str) -> tuple[str, list[str]]:
    """The name and the words of NAME=COMMAND; raises ValueError."""
    name, _, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f'"{text}": {str(error).lower()}') from None
    if not name.strip() or not words:
        raise ValueError(f'"{text}" is not NAME=COMMAND')
    return name.strip(), words


def name_and_options(text: str) -> tuple[str, dict[str, str]]:
    """The name and the options of NAME[:option=value,…]; a value may have commas. Raises ValueError.

    name_and_options("mine.py:Mine:cpus=1,3,slice=2ms") == ("mine.py:Mine", {"cpus": "1,3", "slice": "2ms"})
    """
    if (match := re.fullmatch(r"([^=]*?):([^:=]*=.*)", text)) is None:
        if not text or "=" in text:
            raise ValueError(f'"{text}" is not NAME[:option=value,…]')
        return text, {}
    options: dict[str, str] = {}
    last = ""
    for piece in match[2].split(","):
        option, equals, value = piece.partition("=")
        if not equals:
            options[last] += f",{piece}"
        elif not option or option in options:
            raise ValueError(f'"{text}": {"the same option twice" if option else "an option without a name"}')
        else:
            last, options[option] = option, value
    return match[1], options
