# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment report``: the results of sweeps as one page."""

from __future__ import annotations

import re
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
  ghostbpf experiment report mine --plots pictures
"""


@click.command("report", epilog=_EPILOG)
@click.argument("directory", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: report.html in DIR]")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Write each plot to a file there, too.")
def report(directory: tuple[Path, ...], output: Path | None, plots: Path | None) -> int:
    """Write the results of sweeps and of global-scalability as one HTML page with tables and plots.

    The page needs no other file. Results of a run that goes on, or was interrupted, can be shown, too.
    """
    kept = [journal.read(one / CELLS, _check) for one in directory]
    for one in kept:
        if one.is_cut_off:
            click.echo(f"warning: the last line of {one.path} is cut off, and left out", err=True)
    try:
        from .micro.report import sections as of_scalability
        from .rocksdb.report import page, plots_of
        from .rocksdb.report import sections as of_sweep
    except ImportError:
        raise GhostError("the report needs matplotlib", hint="apt install python3-matplotlib") from None

    def sections(one: Journal) -> str:
        if _is_scalability(one.run):
            return "\n".join(of_scalability(scalability.Results.of_journal(one)))
        return "\n".join(of_sweep(store.Results.of_journal(one)))

    text = page([(one.run["sweep"], sections(one)) for one in kept])
    _write(output or directory[0] / "report.html", text, "--output")
    if plots is not None:
        for number, (title, svg) in enumerate(plots_of(text), 1):
            name = "-".join(re.findall(r"\w+", title.lower()))
            _write(plots / f"{number}-{name}.svg", f"{svg}\n", "--plots")
    return 0


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GhostError(f"cannot write {path}: {error.strerror}", hint=f"another {option}") from None
    click.echo(path)


def _is_scalability(row: journal.Row) -> bool:
    return bool(row["sweep"] == scalability.SWEEP)


def _check(row: journal.Row) -> None:
    """Check a line of a sweep or of global-scalability; both kinds of cells have types of their own keys."""
    is_scalability = _is_scalability(row) if row["type"] == "run" else "task_cpus" in row
    (scalability.Results if is_scalability else store.Results).check(row)
