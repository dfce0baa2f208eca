# SPDX-License-Identifier: Apache-2.0
"""Write a man page for each command to DIRECTORY: ``python -m ghostbpf.tools.manpages DIRECTORY``.

The pages come from the click definitions. click-man does not suffice: it writes no EXAMPLES, EXIT STATUS and SEE ALSO,
finds only commands in ``Group.commands`` (ours are imported on demand), and does not escape help text, so that groff
drops a line that begins with a dot.

An epilog is split by paragraph: "Exit status:" goes to EXIT STATUS, a paragraph with indented lines to EXAMPLES, and
any other to the end of DESCRIPTION.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click

from .cli import ghostbpf
from .help_text import Paragraph, options, paragraphs, subcommands
from .version import version

_EXIT_STATUS = {0: "Success.", 1: "The action failed.", 2: "The command line is wrong.", 130: "Ctrl-C interrupted it."}
#: SEE ALSO of ghostbpf(1), besides the pages of its commands.
_EXTERNAL_PAGES = ("chrt(1)", "sched(7)")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name (`ghostbpf-run`) and the text of each page."""
    yield from _pages(ghostbpf.make_context("ghostbpf", [], resilient_parsing=True))


def _pages(ctx: click.Context) -> Iterator[tuple[str, str]]:
    yield _name(ctx), page(ctx)
    for subcommand in subcommands(ctx):
        yield from _pages(subcommand)


def _name(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-")


def page(ctx: click.Context) -> str:
    """Return the roff text of a command's page."""
    command, below = ctx.command, list(subcommands(ctx))
    description, examples, exit_status = paragraphs(command.help), list[str](), list[Paragraph]()
    for paragraph in paragraphs(command.epilog):
        if paragraph.text.startswith("Exit status:"):
            exit_status.append(Paragraph(_capital(paragraph.text.removeprefix("Exit status:").strip()), False))
        elif paragraph.has_indented_lines:
            examples.append(paragraph.text)
        else:
            description.append(paragraph)
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    lines = [f'.TH {_name(ctx).upper()} 1 {date} "ghostbpf {version()}" "User Commands"']
    lines += [".ad l", ".SH NAME", f"{_escape(_name(ctx))} \\- {_escape(_summary(ctx))}"]
    lines += [".SH SYNOPSIS", f".B {_escape(ctx.command_path)}"]
    lines += [_escape(" ".join(command.collect_usage_pieces(ctx)))]
    lines += [".SH DESCRIPTION", *_text(description)]
    if below:
        lines += [".SH COMMANDS"]
        for subcommand in below:
            lines += [".TP", _reference(f"{_name(subcommand)}(1)"), _escape(_first_sentence(subcommand))]
    lines += [".SH OPTIONS", *_options(ctx)]
    if examples := examples or _group_examples(ctx):
        lines += [".SH EXAMPLES", *_examples(examples)]
    lines += [".SH EXIT STATUS", *(_text(exit_status) or _default_exit_status())]
    lines += [".SH SEE ALSO", _see_also(ctx, below)]
    return "\n".join(lines) + "\n"


def _first_sentence(ctx: click.Context) -> str:
    return ctx.command.get_short_help_str(limit=1000)


def _summary(ctx: click.Context) -> str:
    """Return the first sentence in the form of whatis(1): no full stop, and no capital unless an acronym begins it."""
    sentence = _first_sentence(ctx).rstrip(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _escape(text: str) -> str:
    """Escape roff's requests and escape characters; keep ASCII hyphens and quotes, so that examples can be copied."""
    for character, escaped in (("\\", "\\e"), ("-", "\\-"), ("'", "\\(aq"), ("^", "\\(ha"), ("~", "\\(ti")):
        text = text.replace(character, escaped)
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text).replace("`", "\\(ga")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _text(shown: list[Paragraph]) -> list[str]:
    lines = []
    for number, (text, is_verbatim) in enumerate(shown):
        lines += [".PP"] if number else []
        # A verbatim paragraph without aligned columns is prose that was broken for 80 columns: man fills it again.
        is_table = is_verbatim and "  " in text
        lines += [".EX", _escape(text), ".EE"] if is_table else [_escape(re.sub(r"\s*\n\s*", "\n", text))]
    return lines


def _options(ctx: click.Context) -> Iterator[str]:
    for names, text in options(ctx):
        yield ".TP"
        # In "-p, --pid PID" the options are bold and the metavar is italic.
        yield re.sub(r"[^ ,]+", lambda m: f"\\f{'B' if m[0][0] == '-' else 'I'}{_escape(m[0])}\\fR", names)
        yield _escape(text)


def _examples(blocks: list[str]) -> Iterator[str]:
    """Yield indented lines, which are commands, verbatim, and the lines between them as paragraphs."""
    lines = [line for block in blocks for line in block.splitlines() if line != "Examples:"]
    for number, (is_command, group) in enumerate(itertools.groupby(lines, lambda line: line.startswith(" "))):
        text = textwrap.dedent("\n".join(group))
        if number:
            yield ".PP"
        yield from (".EX", _escape(text), ".EE") if is_command else (_escape(text),)


def _group_examples(ctx: click.Context) -> list[str]:
    """Return the lines of the group's examples that call this command."""
    epilog = ctx.parent.command.epilog if ctx.parent is not None else None
    lines = (line for paragraph in paragraphs(epilog) for line in paragraph.text.splitlines())
    calls = [line for line in lines if line.startswith(" ") and re.search(rf"{ctx.command_path}\b", line)]
    return ["\n".join(calls)] if calls else []


def _default_exit_status() -> list[str]:
    return [line for status, meaning in _EXIT_STATUS.items() for line in (".TP", f".B {status}", meaning)]


def _see_also(ctx: click.Context, below: list[click.Context]) -> str:
    """Return references to the group and its other commands; those of a group are to its own commands."""
    if ctx.parent is None:
        return ",\n".join(map(_reference, [*(f"{_name(command)}(1)" for command in below), *_EXTERNAL_PAGES]))
    siblings = [command for command in subcommands(ctx.parent) if command.info_name != ctx.info_name]
    return ",\n".join(_reference(f"{_name(command)}(1)") for command in (ctx.parent, *(below or siblings)))


def _reference(page: str) -> str:
    name, section = page.split("(")
    # \\% forbids hyphenation of the name.
    return f"\\%\\fB{_escape(name)}\\fR({section}"


def main(directory: str) -> None:
    """Write the pages to `directory`; create it if it does not exist."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        Path(directory, f"{name}.1").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
