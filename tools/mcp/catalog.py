# SPDX-License-Identifier: Apache-2.0
"""The tools: commands, each with the schema of its arguments, which follows from its click parameters.

Only commands in the two lists below are tools, so that a new command is none until it has been judged. The options are
listed nowhere else than in the commands: a tool has those of its command, but for a few that make no sense without a
terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from ..cli import ghostbpf
from ..help_text import paragraphs, subcommands
from ..trace.tool_command import CommandAfterDashes

#: Commands that leave enclaves and tasks as they are; of a group, all of its commands.
_READING = (
    *("doctor", "status", "top", "policies", "why", "enclave ls", "enclave show", "hints show"),
    *("trace", "record", "explain", "compare", "bench"),
)
#: Commands that change them.
_CHANGING = (
    "run",
    *(f"enclave {name}" for name in ("add", "auto-join", "rm", "swap", "resize", "set", "limits", "destroy")),
)
#: Options that each call has: without them, these commands run until Ctrl-C.
_ALWAYS = {"top": "--once", "enclave auto-join": "--once"}
#: Options that no call has: they run until Ctrl-C.
_NEVER = {"enclave add": "--follow"}

#: The name of the argument that has the words of a command to run.
CMD = "cmd"


@dataclass(frozen=True)
class Tool:
    """A command as a tool; ``path`` are the words of the command line, such as ("enclave", "show").

    ``parameters`` are the click parameters by the names of the tool's arguments, ``required`` some of these names, and
    ``always`` the words that each command line has. Of a command that traces, what follows ``--`` is the argument cmd,
    although it is no click parameter. ``changes``: it changes enclaves, or runs commands of the caller.
    """

    path: tuple[str, ...]
    command: click.Command
    parameters: dict[str, click.Parameter]
    required: frozenset[str]
    always: tuple[str, ...]
    changes: bool
    takes_cmd: bool

    @property
    def name(self) -> str:
        """The tool's name, such as "enclave_show"."""
        return "_".join(self.path).replace("-", "_")

    @property
    def description(self) -> str:
        """What --help says of the command, without examples, keys and exit statuses."""
        below = (p for p in paragraphs(self.command.epilog) if "ghostbpf " not in p.text)
        shown = (p.text for p in (*paragraphs(self.command.help), *below))
        return "\n\n".join(text for text in shown if not text.startswith(("Exit status:", "Keys:")))

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        properties = {name: _described(parameter) for name, parameter in self.parameters.items()}
        if self.takes_cmd:
            text = "A command to run, word by word; no shell reads it."
            properties[CMD] = {"type": "array", "items": {"type": "string"}, "description": text}
        document = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**document, "required": sorted(self.required)} if self.required else document


def tools(*, allow_changes: bool) -> dict[str, Tool]:
    """The tools by name; without ``allow_changes``, none that changes enclaves or runs a command of the caller."""
    found = [tool for words in _READING for tool in _below(words.split(), allow_changes, changes=False)]
    if allow_changes:
        found += [tool for words in _CHANGING for tool in _below(words.split(), allow_changes, changes=True)]
    return {tool.name: tool for tool in found}


def _below(words: list[str], allow_changes: bool, *, changes: bool) -> Iterator[Tool]:
    """The tool of the command that ``words`` name, or the tools of that group's commands."""
    ctx = ghostbpf.make_context("ghostbpf", [], resilient_parsing=True)
    for word in words:
        assert isinstance(ctx.command, click.Group)
        command = ctx.command.get_command(ctx, word)
        assert command is not None
        ctx = command.make_context(word, [], parent=ctx, resilient_parsing=True)
    if isinstance(ctx.command, click.Group):
        for below in subcommands(ctx):
            yield _tool((*words, below.info_name or ""), below.command, allow_changes, changes)
    else:
        yield _tool(tuple(words), ctx.command, allow_changes, changes)


def _tool(path: tuple[str, ...], command: click.Command, allow_changes: bool, changes: bool) -> Tool:
    words = " ".join(path)
    always = [_ALWAYS[words]] if words in _ALWAYS else []
    given = [*always, _NEVER.get(words), "--json"]
    parameters = {
        name: parameter
        for parameter in command.params
        if not getattr(parameter, "hidden", False) and not set(parameter.opts) & {*given}
        for name in [argument_name(parameter)]
        if name != CMD
    }
    traces = isinstance(command, CommandAfterDashes)
    takes_cmd = allow_changes and (traces or any(parameter.name == CMD for parameter in command.params))
    required = {name for name, parameter in parameters.items() if parameter.required}
    if traces:
        required.add("duration")
    elif takes_cmd:
        required.add(CMD)
    if any("--json" in parameter.opts for parameter in command.params):
        always.append("--json")
    # A workload, or what it is compared with, may be a command, too.
    changes = changes or takes_cmd or (allow_changes and words == "bench")
    return Tool(path, command, parameters, frozenset(required), tuple(always), changes, takes_cmd)


def argument_name(parameter: click.Parameter) -> str:
    """The name of the argument: "runnable_timeout" of --runnable-timeout, "id" of the argument ID."""
    name = max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.name or ""
    return name.lstrip("-").replace("-", "_")


def is_list(parameter: click.Parameter) -> bool:
    """Whether its argument is a list."""
    return parameter.nargs != 1 or parameter.multiple


def json_type(parameter: click.Parameter) -> str:
    """The JSON type of its argument, or of each item of it."""
    if getattr(parameter, "is_flag", False):
        return "boolean"
    kind = parameter.type
    if isinstance(kind, click.types.IntParamType):
        return "integer"
    # A subclass reads more than numbers, such as "500ms".
    return "number" if type(kind) in (click.types.FloatParamType, click.FloatRange) else "string"


def _described(parameter: click.Parameter) -> dict[str, Any]:
    item: dict[str, Any] = {"type": json_type(parameter)}
    if isinstance(parameter.type, click.Choice):
        item["enum"] = list(parameter.type.choices)
    if item["type"] in ("integer", "number") and isinstance(parameter.type, (click.IntRange, click.FloatRange)):
        item |= _bounds(parameter.type)
    text = getattr(parameter, "help", None) or f"The argument {parameter.make_metavar(_no_context())}."
    if is_list(parameter):
        return {"type": "array", "items": item, "description": text}
    default = parameter.default
    if item["type"] != "boolean" and isinstance(default, (str, int, float)):
        item["default"] = default
    return {**item, "description": text}


def _bounds(kind: click.IntRange | click.FloatRange) -> dict[str, Any]:
    least = {"exclusiveMinimum" if kind.min_open else "minimum": kind.min} if kind.min is not None else {}
    most = {"exclusiveMaximum" if kind.max_open else "maximum": kind.max} if kind.max is not None else {}
    return {**least, **most}


def _no_context() -> click.Context:
    return click.Context(ghostbpf)
