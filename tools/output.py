# SPDX-License-Identifier: Apache-2.0
"""How commands print data: a table for people, or one JSON object a line.

Any user can give a task a name with control characters or line breaks. Output for people goes through ``printable``;
JSON has its own escapes and is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..loaders.errors import GhostError

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")


def alias(command: click.Command) -> click.Command:
    """A copy of ``command`` that help does not show, to be added under its former name."""
    import copy

    hidden = copy.copy(command)
    hidden.hidden = True
    return hidden


def show(rows: Iterable[Mapping[str, Any]], *, as_json: bool, empty: str = "") -> None:
    """Print ``rows``, all with the same keys; ``empty`` is printed instead of an empty table."""
    rows = list(rows)
    if as_json:
        import json

        for row in rows:
            click.echo(json.dumps(row))
    elif rows:
        click.echo(table(rows))
    elif empty:
        click.echo(empty)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``rows`` in columns, exactly one line each."""
    from tabulate import tabulate

    cells = [[printable(value) if isinstance(value, str) else value for value in row.values()] for row in rows]
    return tabulate(cells, headers=list(rows[0]), disable_numparse=True)


def printable(text: str, keep: str = "") -> str:
    r"""``text`` with an escape for each control character, line break and invisible character that is not in ``keep``.

    printable("a\x1b[2J") == r"a\x1b[2J"
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Like printable(), for a message of several lines."""
    return printable(text, keep="\n\t")


def human_ns(ns: float) -> str:
    """A time in a readable unit: "740 ns", "12.3 us", "4.1 ms", "2.5 s"."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.1f} {unit}"
    return f"{ns:.0f} ns"


def human_bytes(size: float) -> str:
    """A size in a readable unit: "740 B", "12.3 KB", "4.1 MB", "2.5 GB"."""
    for unit, bytes in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= bytes:
            return f"{size / bytes:.1f} {unit}"
    return f"{size:.0f} B"


def with_remedy(message: str, hint: str | None) -> str:
    """A message for people and, on the next line, what to try, if there is a ``hint``."""
    return printable_lines(message + (f"\n  try: {hint}" if hint else ""))


def warn(errors: Iterable[GhostError]) -> None:
    """Print errors that do not end the command, each with its hint."""
    for error in errors:
        click.echo(with_remedy(f"warning: {error}", error.hint), err=True)


def check_plot(path: Path | None) -> None:
    """Raise BadParameter if ``path`` of --plot cannot be drawn to, and GhostError without matplotlib."""
    if path is None:
        return
    if path.suffix not in (".svg", ".png"):
        raise click.BadParameter(f'"{path}" is neither .svg nor .png', param_hint="--plot")
    if path.is_dir():
        raise click.BadParameter(f"{path} is a directory", param_hint="--plot")
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {path.absolute().parent}", param_hint="--plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise GhostError("--plot needs matplotlib", hint="apt install python3-matplotlib") from None
