# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment report``: the results of sweeps as one page."""

from __future__ import annotations

from pathlib import Path

import click

from ...loaders.errors import GhostError
from . import store

_EPILOG = """\b
Examples:
  ghostbpf experiment report shinjuku-20260101-120000
  ghostbpf experiment report mine others --output both.html
"""


@click.command("report", epilog=_EPILOG)
@click.argument("directory", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: report.html in DIR]")
def report(directory: tuple[Path, ...], output: Path | None) -> int:
    """Write the results of sweeps as one HTML page with tables and plots.

    The page needs no other file. Results of a sweep that still runs, or was interrupted, can be shown, too.
    """
    results = [store.read(one) for one in directory]
    for one in results:
        if one.journal.is_cut_off:
            click.echo(f"warning: the last line of {one.directory / store.CELLS} is cut off, and left out", err=True)
    try:
        from .report import page
    except ImportError:
        raise GhostError("the report needs matplotlib", hint="apt install python3-matplotlib") from None
    path = output or directory[0] / "report.html"
    try:
        path.write_text(page(results), encoding="utf-8")
    except OSError as error:
        raise GhostError(f"cannot write {path}: {error.strerror}", hint="another --output") from None
    click.echo(path)
    return 0
