# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call: refused, or turned into the words of a command line.

click checks the values once more when the command runs, with its own messages. What is refused here is what a command
line would misread, a path outside of the server's directory, and without --allow-changes a value that makes the server
run what the caller chose.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...loaders.errors import GhostError
from ...schedulers.registry import is_file
from .catalog import CMD, Tool, is_list, json_type

#: Values that are code, or a command: by the tool's name and the argument.
_RUNS: dict[tuple[str, str], Callable[[str], bool]] = {
    ("bench", "workload"): lambda text: re.match(r"\w+(:|$)", text) is None,
    ("bench", "policy"): lambda text: is_file(text) or "/" in text,
    ("bench", "with"): lambda text: True,
}
#: Arguments that name a file to write.
_WRITTEN = ("output", "plot")
_PYTHON_TYPES = {"boolean": (bool,), "integer": (int,), "number": (int, float), "string": (str, int, float)}


class BadArgument(GhostError):
    """An argument of a call is refused."""


@dataclass(frozen=True)
class Limits:
    """What calls may do: files lie in ``directory``."""

    directory: Path
    allow_changes: bool


def command_line(tool: Tool, given: Mapping[str, Any], limits: Limits) -> list[str]:
    """The words after ``ghostbpf`` for a call of ``tool``; raises BadArgument."""
    known = [*tool.parameters, *([CMD] if tool.takes_cmd else [])]
    for name in given:
        if name not in known:
            raise BadArgument(f'{tool.name} has no argument "{name}"', hint=_instead(name, known, limits))
    for name in sorted(tool.required):
        if given.get(name) in (None, [], ""):
            raise BadArgument(f'{tool.name} needs the argument "{name}"', hint=_ADVICE.get(name))
    options, positional = list[str](), list[str]()
    for name, parameter in tool.parameters.items():
        for value in _values(tool, name, parameter, given.get(name), limits):
            if isinstance(parameter, click.Option):
                flag = max(parameter.opts, key=len)
                options.append(flag if value is True else f"{flag}={value}")
            else:
                positional.append(_word(name, value))
    cmd = [_text(CMD, word) for word in _listed(CMD, given.get(CMD))]
    return [*tool.path, *tool.always, *options, *positional, *(["--", *cmd] if cmd else [])]


_ADVICE = {
    "duration": 'a number of seconds, such as "5", or a time such as "500ms"',
    CMD: 'the words of a command, such as ["sleep", "60"]; ["true"] with keep makes an enclave that stays',
}


def _instead(name: str, known: list[str], limits: Limits) -> str:
    if near := difflib.get_close_matches(name, known, n=1):
        return f'did you mean "{near[0]}"?'
    if name == CMD and not limits.allow_changes:
        return "ghostbpf mcp --allow-changes: without it, the server runs no command of the caller"
    return "its arguments are " + (", ".join(known) or "none")


def _values(tool: Tool, name: str, parameter: click.Parameter, value: Any, limits: Limits) -> Iterator[Any]:
    """Each value for the command line: True for a flag, or else text."""
    kind = json_type(parameter)
    items = _listed(name, value) if is_list(parameter) else [value]
    for item in items:
        if item is None or item is False:
            continue
        if not isinstance(item, _PYTHON_TYPES[kind]) or (isinstance(item, bool) and kind != "boolean"):
            raise BadArgument(f'"{name}" is {item!r}, and not of type {kind}')
        if kind == "boolean":
            yield True
            continue
        text = _text(name, str(item))
        is_code = _RUNS.get((tool.name, name))
        if is_code is not None and is_code(text) and not limits.allow_changes:
            raise BadArgument(
                f'"{name}" is "{text}", which runs a command or a file',
                hint="ghostbpf mcp --allow-changes, or a name that ghostbpf has",
            )
        # A cgroup is a directory of the kernel's.
        if isinstance(parameter.type, click.Path) and name != "cgroup":
            text = str(_file(name, text, limits))
        yield text


def _listed(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadArgument(f'"{name}" is {value!r}, and not a list')
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise BadArgument(f'"{name}" has {value!r}, which is no word of a command line')
    return value


def _word(name: str, value: str) -> str:
    """A value without an option's name in front; as an option it would be misread."""
    if value.startswith("-"):
        raise BadArgument(f'"{name}" is "{value}", which begins with "-"', hint="a file begins with ./")
    return value


def _file(name: str, text: str, limits: Limits) -> Path:
    """The file below the server's directory that ``text`` names; symbolic links count as what they lead to."""
    directory = limits.directory.resolve()
    path = (directory / text).resolve()
    if not path.is_relative_to(directory) or path == directory:
        raise BadArgument(
            f'"{name}" is {text}, which is outside of the server\'s directory {directory}',
            hint="a name such as trace1, or start the server with ghostbpf mcp --files DIR",
        )
    if name in _WRITTEN and path.exists() and not limits.allow_changes:
        raise BadArgument(
            f'"{name}" is {text}, which exists: this server writes only new files',
            hint="another name, or ghostbpf mcp --allow-changes",
        )
    return path
