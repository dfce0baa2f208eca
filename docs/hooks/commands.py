# SPDX-License-Identifier: Apache-2.0
"""mkdocs hook: a page for each command, from the click definitions that `--help` prints."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import click
from ghostbpf.tools.cli import ghostbpf
from ghostbpf.tools.help_text import Paragraph, options, paragraphs, subcommands
from mkdocs.structure.files import File, Files


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    (section,) = (entry["Commands"] for entry in config.nav if "Commands" in entry)
    section.append("commands/index.md")
    for ctx in _top():
        entry = {_title(ctx): _page(ctx)}
        pages = [{child.info_name: _page(child)} for child in _with_pages(ctx)]
        section.append({_title(ctx): [entry, *pages]} if pages else entry)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Write the pages, one for each command."""
    pages = {"commands/index.md": _index()}
    for ctx in _top():
        pages |= {_page(one): "".join(_sections(one)) for one in (ctx, *_with_pages(ctx))}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _root() -> click.Context:
    return ghostbpf.make_context("ghostbpf", [], resilient_parsing=True)


def _top() -> Iterator[click.Context]:
    yield from subcommands(_root())


def _with_pages(ctx: click.Context) -> list[click.Context]:
    """The commands of a group that have pages of their own: all but the policies of `run`, which differ in options."""
    return [] if ctx.info_name == "run" else list(subcommands(ctx))


def _title(ctx: click.Context) -> str:
    return ctx.command_path.partition(" ")[2]


def _page(ctx: click.Context) -> str:
    return f"commands/{_title(ctx).replace(' ', '-')}.md"


def _list(contexts: Iterable[click.Context]) -> str:
    rows = "".join(
        f"| [`{ctx.command_path}`]({_page(ctx).removeprefix('commands/')}) "
        f"| {_cell(ctx.command.get_short_help_str(limit=1000))} |\n"
        for ctx in contexts
    )
    return f"| command | |\n|---|---|\n{rows}\n" if rows else ""


def _index() -> str:
    return f"# Commands\n\n{_body(_root())}{_list(_top())}"


def _sections(ctx: click.Context) -> Iterator[str]:
    yield f"# {ctx.command_path}\n\n{_body(ctx)}{_list(_with_pages(ctx))}"
    if ctx.parent is not None and ctx.parent.info_name == "trace":
        yield f"[{ctx.info_name}](../trace/{ctx.info_name}.md) explains the output, the overhead and the limits.\n"
    if not _with_pages(ctx):
        for policy in subcommands(ctx):
            yield f"## {policy.info_name}\n\n[{policy.info_name}](../policies/{policy.info_name}.md): "
            yield f"{_cell(policy.command.help or '')}.\n\n{_options(policy)}\n"


def _body(ctx: click.Context) -> str:
    """Usage, description, options and examples."""
    command = ctx.command
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    description, epilog = (map(_text, paragraphs(text)) for text in (command.help, command.epilog))
    parts = [f"```text\n{usage}\n```", *description, _options(ctx), *epilog]
    return "".join(f"{part}\n\n" for part in parts if part)


def _text(paragraph: Paragraph) -> str:
    """The paragraph as Markdown; indented lines whose breaks are kept become a block of code."""
    text = paragraph.text
    if not paragraph.is_verbatim or not paragraph.has_indented_lines:
        return _escaped(text)
    title, _, rest = text.partition("\n")
    if title.startswith(" "):
        return f"```text\n{textwrap.dedent(text)}\n```"
    return f"{_escaped(title)}\n\n```text\n{textwrap.dedent(rest)}\n```"


def _options(ctx: click.Context) -> str:
    rows = "".join(f"| `{names.replace('|', chr(92) + '|')}` | {_cell(text)} |\n" for names, text in options(ctx))
    return f"| option | |\n|---|---|\n{rows}" if rows else ""


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """`text` for Markdown, except what stands between backquotes."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else _escape(piece) for piece in pieces)


def _escape(text: str) -> str:
    return re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(text, quote=False))
