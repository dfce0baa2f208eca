# SPDX-License-Identifier: Apache-2.0
"""How commands print data: a table for people, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click
from tabulate import tabulate

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")


def show(rows: Iterable[Mapping[str, Any]], *, as_json: bool, empty: str = "") -> None:
    """Print ``rows``, all with the same keys; ``empty`` is said instead of an empty table."""
    rows = list(rows)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    elif rows:
        click.echo(tabulate([row.values() for row in rows], headers=list(rows[0]), disable_numparse=True))
    elif empty:
        click.echo(empty)


def human_ns(ns: float) -> str:
    """A time in the unit that suits it: "740 ns", "12.3 us", "4.1 ms", "2.5 s"."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.1f} {unit}"
    return f"{ns:.0f} ns"
