# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf top``: what enclaves, CPUs and tasks do now, on a screen, or once as text or JSON."""

from __future__ import annotations

import json
import shutil
import sys
import time

import click

from ...loaders.errors import GhostError, PermissionMissing
from ..output import json_option
from . import sample
from .columns import SORT_NAMES, report, select_tasks, sort_tasks
from .document import document
from .drawing import has_blocks
from .frame import History, between
from .health import core_lines

_EXAMPLES = """\b
Examples:
  sudo ghostbpf top
  sudo ghostbpf top --sort wait --enclave 1
  sudo ghostbpf top --once                  as text, for a report
  sudo ghostbpf top --once --json | jq .enclaves

\b
Keys: q quits, ? lists them all.

\b
Exit status: 0, also if no core is attached; 1 if the core cannot be read, or
there is no terminal.
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two readings; rates are means over it.",
)
@click.option("--enclave", type=click.IntRange(0), metavar="ID", help="Show the tasks of enclave ID alone.")
@click.option(
    "--filter", "words", default="", metavar="WORDS", help="Show tasks with WORDS in name, state, TID or PID."
)
@click.option(
    "--sort",
    type=click.Choice(SORT_NAMES),
    default="cpu",
    metavar="COLUMN",
    help="Sort tasks by COLUMN, such as cpu, wait or migr.",
)
@click.option("--once", is_flag=True, help="Read twice, print what was between, and end.")
@json_option
def command(interval: float, enclave: int | None, words: str, sort: str, once: bool, as_json: bool) -> int:
    """Show enclaves, policies and agents, what each CPU runs, and each task's state, wait and run time, live.

    Keys sort, filter and follow tasks, and change enclaves: another policy, other CPUs, a process more or less. An
    enclave is destroyed only after a question. Without a core, the screen says why, and goes on when one comes.

    It only reads the core's maps and /proc, and walks the tasks in the ext class once per interval.
    """
    if as_json and not once:
        raise click.UsageError("--json needs --once")
    first = sample.read()
    if isinstance(first.error, PermissionMissing):
        raise first.error
    if once:
        return _print_once(first, interval, enclave, words, sort, as_json)
    # textual reads stdin and draws on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise GhostError("top needs a terminal", hint="ghostbpf top --once")
    try:
        from .app import TopApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise GhostError(
            "top needs the Python package textual for its screen",
            hint="apt install python3-textual, or pip install 'ghostbpf[top]'; ghostbpf top --once does without",
        ) from None
    app = TopApp(first, interval, enclave=enclave, words=words, sort=sort)
    app.run()
    return app.return_code or 0


def _print_once(
    first: sample.Sample, interval: float, enclave: int | None, words: str, sort: str, as_json: bool
) -> int:
    frame = between(None, first)
    if frame.state == "attached":
        time.sleep(interval)
        frame = between(first, sample.read())
    tasks = sort_tasks(select_tasks(frame.tasks, enclave, words), sort)
    if as_json:
        click.echo(json.dumps(document(frame, tasks)))
    elif frame.error is not None:
        raise frame.error
    elif lines := core_lines(frame):
        click.echo("\n".join(lines))
    else:
        history = History()
        history.add(frame)
        width = shutil.get_terminal_size().columns
        click.echo("\n".join(report(frame, history, tasks, width, blocks=has_blocks())))
    return 0 if frame.error is None else 1
