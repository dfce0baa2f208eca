# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf mcp``: a server for clients of the Model Context Protocol."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

import click

from ...loaders.errors import GhostError
from ..output import json_option, show
from ..trace.tool import Seconds
from .arguments import Limits
from .catalog import Tool, tools

_EPILOG = """\b
Examples:
  sudo ghostbpf mcp                          tools that read
  sudo ghostbpf mcp --files ~/recordings     recordings stay there
  sudo ghostbpf mcp --allow-changes          and tools that change enclaves
  ghostbpf mcp --list                        which tools there are
  ghostbpf mcp --list --json | jq .schema    and their arguments

\b
A client starts the server, and speaks on its stdin and stdout:
  {"command": "sudo", "args": ["-n", "ghostbpf", "mcp"]}

\b
Exit status: 0 when the client is done, or Ctrl-C or SIGTERM ends it; 1 if
the SDK is missing, or there is no client; 2 if the command line is wrong.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--allow-changes",
    is_flag=True,
    help="Have tools that change enclaves, and run commands and policy files of the client.",
)
@click.option(
    "--files",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Read and write recordings and plots below DIR.  [default: a directory that goes with the server]",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="End a tool, as by Ctrl-C, after SECONDS.",
)
@click.option("--list", "listed", is_flag=True, help="Print the tools, and end.")
@json_option
def command(allow_changes: bool, files: Path | None, timeout: float, listed: bool, as_json: bool) -> None:
    """Serve ghostbpf's commands as tools of the Model Context Protocol, on stdin and stdout.

    The tools only look: what runs, what waits and why, traces, recordings, benchmarks. They use no file outside of
    DIR, overwrite none, and run no command of the client. With --allow-changes they also change enclaves, and then
    the client can run anything that this user can.
    """
    if as_json and not listed:
        raise click.UsageError("--json needs --list")
    found = tools(allow_changes=allow_changes)
    if listed:
        show(map(_row_with_schema if as_json else _row, found.values()), as_json=as_json)
        return
    if sys.stdin.isatty():
        click.echo("waiting for an MCP client on stdin; Ctrl-C ends", err=True)
    elif not stat.S_ISFIFO(mode := os.fstat(sys.stdin.fileno()).st_mode) and not stat.S_ISSOCK(mode):
        raise GhostError(
            "stdin is no pipe of an MCP client",
            hint="have a client start ghostbpf mcp; ghostbpf mcp --list shows its tools",
        )
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "anyio"):
            raise
        raise GhostError(
            "mcp needs the Python package mcp, version 2", hint="pip install 'ghostbpf[mcp]', in ghostbpf's environment"
        ) from None
    with contextlib.ExitStack() as at_end:
        if files is None:
            files = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="ghostbpf-mcp-")))
        serve(found, Limits(files, allow_changes), timeout)


def _row(tool: Tool) -> dict[str, str]:
    return {"tool": tool.name, "changes": "yes" if tool.changes else "", "is": _summary(tool)}


def _row_with_schema(tool: Tool) -> dict[str, object]:
    return {
        "tool": tool.name,
        "changes": tool.changes,
        "command": " ".join(("ghostbpf", *tool.path)),
        "description": tool.description,
        "schema": tool.schema(),
    }


def _summary(tool: Tool) -> str:
    """The first sentence, cut for 80 columns."""
    return tool.command.get_short_help_str(limit=46)
