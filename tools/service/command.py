# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf apply FILE``: make the enclaves that a file describes."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import NoReturn

import click

from ...schedulers.launch import termination_signals
from ..caveats import counted
from ..output import json_option, printable, show
from . import changes, plan
from .config import read
from .plan import Change

_EXAMPLES = """\b
Examples:
  sudo ghostbpf apply --dry-run enclaves.toml   what would change
  sudo ghostbpf apply enclaves.toml             change it; twice is once
  sudo ghostbpf apply enclaves.toml --profile busy
  sudo ghostbpf apply enclaves.toml --prune     destroy all others
  sudo ghostbpf apply --json enclaves.toml | jq .what

\b
Exit status: 0 if the enclaves are as in FILE, or, with --dry-run, can be
compared; 1 if a change failed, and nothing has changed; 2 if FILE, or
the command line, is wrong.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path())
@click.option("--dry-run", is_flag=True, help="Show what differs, and change nothing.")
@click.option("--profile", metavar="NAME", help="Apply it as under this profile, whatever its conditions.")
@click.option("--prune", is_flag=True, help="Destroy enclaves that FILE lacks.")
@click.option("--remove", type=int, multiple=True, metavar="ID", help="Destroy enclave ID if FILE lacks it.")
@click.option("--join/--no-join", default=True, help="Move tasks by the rules of FILE, or leave them.  [default: join]")
@click.option("--stdin", is_flag=True, help="Read the text from stdin; FILE names it, and is where policies are.")
@json_option
def command(
    file: str,
    dry_run: bool,
    profile: str | None,
    prune: bool,
    remove: tuple[int, ...],
    join: bool,
    stdin: bool,
    as_json: bool,
) -> None:
    """Make the enclaves that the TOML FILE describes, and show what differs.

    Enclaves that exist are changed while their tasks run, and what is as in FILE is left alone. If a change fails,
    those before it are undone. Agents stay when the command has ended. Tasks join by the rules of FILE once;
    `ghostbpf service` goes on.
    """
    config = read(file, sys.stdin.read() if stdin else None)
    wanted, found = config.under(profile), plan.live()
    removed = [id for id, one in found.items() if id not in wanted and (prune or id in remove) and one.tree in (0, id)]
    differences = plan.differences(wanted, found, removed)
    plan.check(wanted, found, removed)
    plan.rules_of(wanted)
    if dry_run:
        joins = plan.joins({id: one for id, one in wanted.items() if id in found}) if join else []
        _show([*differences, *joins], as_json, empty=f"the enclaves are as in {file}")
        return
    _show(differences, as_json, empty=f"the enclaves are as in {file}")
    if differences:
        with _ending_by_exception():
            changes.make(wanted, found, removed)
        if not as_json:
            click.echo(f"made {counted(len(differences), 'change')}")
    if join:
        _join(wanted, as_json)


@contextlib.contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Let the first termination signal raise SystemExit, so that steps are undone, and no other disturb that."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in termination_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(differences: Iterable[Change], as_json: bool, *, empty: str) -> None:
    rows = [asdict(change) for change in differences]
    if not as_json:
        rows = [{name: "-" if value is None else value for name, value in row.items()} for row in rows]
    show(rows, as_json=as_json, empty=empty)


def _join(wanted: plan.Wanted, as_json: bool) -> None:
    joined = 0
    for id, outcome in changes.join(wanted):
        joined += outcome.error is None
        if as_json:
            click.echo(json.dumps({"enclave": id, "what": "task", **vars(outcome)}))
        elif outcome.error is not None:
            click.echo(printable(f"cannot move task {outcome.tid} ({outcome.comm}): {outcome.error}"), err=True)
    if joined and not as_json:
        click.echo(f"{counted(joined, 'task')} joined")
