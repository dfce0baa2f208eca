# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment report``: the results of sweeps as one page."""

from __future__ import annotations

from pathlib import Path

import click

from ..loaders.errors import GhostError
from . import journal
from .journal import Journal
from .micro import scalability
from .results import CELLS
from .rocksdb import store

_EPILOG = """\b
Examples:
  ghostbpf experiment report shinjuku-20260101-120000
  ghostbpf experiment report mine others --output both.html
"""


@click.command("report", epilog=_EPILOG)
@click.argument("directory", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: report.html in DIR]")
def report(directory: tuple[Path, ...], output: Path | None) -> int:
    """Write the results of sweeps and of global-scalability as one HTML page with tables and plots.

    The page needs no other file. Results of a run that goes on, or was interrupted, can be shown, too.
    """
    kept = [journal.read(one / CELLS, _check) for one in directory]
    for one in kept:
        if one.is_cut_off:
            click.echo(f"warning: the last line of {one.path} is cut off, and left out", err=True)
    try:
        from .micro.report import sections as of_scalability
        from .rocksdb.report import page
        from .rocksdb.report import sections as of_sweep
    except ImportError:
        raise GhostError("the report needs matplotlib", hint="apt install python3-matplotlib") from None

    def sections(one: Journal) -> str:
        if _is_scalability(one.run):
            return "\n".join(of_scalability(scalability.Results.of_journal(one)))
        return "\n".join(of_sweep(store.Results.of_journal(one)))

    path = output or directory[0] / "report.html"
    try:
        path.write_text(page([(one.run["sweep"], sections(one)) for one in kept]), encoding="utf-8")
    except OSError as error:
        raise GhostError(f"cannot write {path}: {error.strerror}", hint="another --output") from None
    click.echo(path)
    return 0


def _is_scalability(row: journal.Row) -> bool:
    return bool(row["sweep"] == scalability.SWEEP)


def _check(row: journal.Row) -> None:
    """Check a line of a sweep or of global-scalability; both kinds of cells have types of their own keys."""
    is_scalability = _is_scalability(row) if row["type"] == "run" else "task_cpus" in row
    (scalability.Results if is_scalability else store.Results).check(row)
