# SPDX-License-Identifier: Apache-2.0
"""The parts of the text that --help prints, for man pages and for the documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import click

#: click's mark of a paragraph that keeps its line breaks.
_VERBATIM = "\b\n"


class Paragraph(NamedTuple):
    """A paragraph of a command's help or epilog; ``is_verbatim`` if its line breaks are kept."""

    text: str
    is_verbatim: bool

    @property
    def has_indented_lines(self) -> bool:
        """Whether it has examples or a table; indented lines of examples are commands."""
        return re.search(r"^ ", self.text, re.MULTILINE) is not None


def paragraphs(text: str | None) -> list[Paragraph]:
    """The paragraphs of a help text or an epilog, without click's marks."""
    # click ends the help text at a form feed.
    pieces = re.split(r"\n(?:[ \t]*\n)+|\n(?=[\b]\n)", inspect.cleandoc(text or "").split("\f")[0])
    found = [Paragraph(p.removeprefix(_VERBATIM).strip("\b\n").rstrip(), p.startswith(_VERBATIM)) for p in pieces]
    return [paragraph for paragraph in found if paragraph.text]


def options(ctx: click.Context) -> list[tuple[str, str]]:
    """The names with the metavar, and the help, of each option that is not hidden."""
    found = (p.get_help_record(ctx) for p in ctx.command.get_params(ctx) if isinstance(p, click.Option))
    return [record for record in found if record is not None]


def subcommands(ctx: click.Context) -> Iterator[click.Context]:
    """The commands of a group that its help lists; each has a man page, and a place in the documentation."""
    if isinstance(group := ctx.command, click.Group):
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield command.make_context(name, [], parent=ctx, resilient_parsing=True)
