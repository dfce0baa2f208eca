# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf metrics``: the command."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import click
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.registry import CollectorRegistry

from ...loaders.errors import BpfError, GhostError, PermissionMissing
from ...schedulers import snapshot
from ...schedulers.core import Core
from ...schedulers.launch import signals_blocked, termination_signals
from ...schedulers.policy import duration_ns
from ..output import json_option, with_remedy
from . import scx_stats
from .exposition import HttpServer, Reader, registry, write_textfile
from .stats_socket import StatsSocket

_DEFAULT_ADDRESS = ("127.0.0.1", 9901)
_LONGEST_INTERVAL_S = 3600
#: Seconds between two looks whether another process has replaced the socket.
_CHECK_S = 5.0

_EXAMPLES = """\b
Examples:
  sudo ghostbpf metrics                   serve http://127.0.0.1:9901/metrics
  sudo ghostbpf metrics --listen '[::]:9901' --per-cpu
  sudo ghostbpf metrics --once            print them, and end
  sudo ghostbpf metrics --textfile /var/lib/node_exporter/ghostbpf.prom
  sudo ghostbpf metrics --scx-stats       for scx's tools, without HTTP
  sudo ghostbpf metrics --scx-stats --listen 127.0.0.1:9901
\b
Exit status: 0 after Ctrl-C or SIGTERM; 1 if the metrics cannot be read
or not be served; 2 if the command line is wrong.
"""


def _address(ctx: click.Context, _: click.Parameter, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise click.BadParameter(f'"{text}" is not HOST:PORT, such as 127.0.0.1:9901 or [::1]:9901', ctx)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _interval(ctx: click.Context, _: click.Parameter, text: str) -> float:
    try:
        return duration_ns(text, most_s=_LONGEST_INTERVAL_S) / 1e9
    except ValueError as error:
        raise click.BadParameter(str(error), ctx) from None


@click.command(epilog=_EXAMPLES)
@click.option("--listen", callback=_address, metavar="HOST:PORT", help="Serve HTTP there; default: 127.0.0.1:9901.")
@click.option("--textfile", type=click.Path(path_type=Path), metavar="FILE", help="Write a file for node_exporter.")
@click.option("--interval", callback=_interval, default="15s", show_default=True, help="How often to write FILE.")
@click.option(
    "--scx-stats",
    is_flag=False,
    flag_value=scx_stats.DEFAULT_PATH,
    type=click.Path(path_type=Path),
    metavar="[PATH]",
    help=f"Serve scx's statistics protocol; default: {scx_stats.DEFAULT_PATH}.",
)
@click.option("--once", is_flag=True, help="Print the metrics, and end.")
@click.option("--per-cpu", is_flag=True, help="Also have metrics for each CPU of each enclave.")
@json_option
def command(
    listen: tuple[str, int] | None,
    textfile: Path | None,
    interval: float,
    scx_stats: Path | None,
    once: bool,
    per_cpu: bool,
    as_json: bool,
) -> None:
    """Export what the core counts, as OpenMetrics and to scx's tools.

    Each scrape reads the kernel's maps. Cores and enclaves may come and go. Without options, it serves HTTP at
    127.0.0.1:9901. --json goes with --once: one object for each sample.
    """
    if once and (listen or textfile or scx_stats):
        raise click.UsageError("--once prints the metrics, and goes without --listen, --textfile and --scx-stats")
    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    if once:
        state = snapshot.take()
        _print(registry(lambda: state, per_cpu=per_cpu), as_json)
        return
    if not (textfile or scx_stats):
        listen = listen or _DEFAULT_ADDRESS
    # Servers' threads inherit the mask.
    with signals_blocked(termination_signals()):
        _check_access()
        _serve(Reader(), listen, textfile, interval, scx_stats, per_cpu)


def _print(made: CollectorRegistry, as_json: bool) -> None:
    if not as_json:
        click.echo(openmetrics(made), nl=False)  # type: ignore[no-untyped-call]
        return
    for family in made.collect():
        for sample in family.samples:
            row: dict[str, Any] = {"metric": sample.name, "type": family.type, "labels": sample.labels}
            click.echo(json.dumps({**row, "value": sample.value}))


def _check_access() -> None:
    """Raise what tells that this process may not open the maps; the state of the core is no error."""
    try:
        Core.open()
    except (PermissionMissing, BpfError):
        raise
    except GhostError:
        pass  # each read reports it, until it is gone


def _serve(
    reader: Reader,
    listen: tuple[str, int] | None,
    textfile: Path | None,
    interval: float,
    socket: Path | None,
    per_cpu: bool,
) -> None:
    """Serve until a termination signal comes."""
    with contextlib.ExitStack() as opened:
        made = registry(reader.read, per_cpu=per_cpu)
        if listen is not None:
            server = opened.enter_context(HttpServer(*listen, made))
            server.start()
            click.echo(f"metrics: {server.url}", err=True)
        stats = None
        if socket is not None:
            stats = opened.enter_context(StatsSocket(socket, functools.partial(scx_stats.answer, read=reader.read)))
            stats.start()
            click.echo(f"scx statistics: {socket}", err=True)
        if textfile is not None:
            write_textfile(textfile, generate_latest(made))
            click.echo(f"metrics: {textfile}, every {interval:g} s", err=True)
        _wait(made, textfile, interval, stats)


def _wait(made: CollectorRegistry, textfile: Path | None, interval: float, stats: StatsSocket | None) -> None:
    due = math.inf if textfile is None else time.monotonic() + interval
    failed = ""
    while signal.sigtimedwait(termination_signals(), min(max(due - time.monotonic(), 0), _CHECK_S)) is None:
        if stats is not None and stats.is_replaced:
            raise GhostError("another process has replaced the socket of --scx-stats", hint="stop that process first")
        if textfile is not None and time.monotonic() >= due:
            due = time.monotonic() + interval
            failed = _rewrite(textfile, made, failed)


def _rewrite(textfile: Path, made: CollectorRegistry, failed: str) -> str:
    """Write the file, and say so if that fails, or works again; returns the error, empty if there is none."""
    try:
        write_textfile(textfile, generate_latest(made))
    except GhostError as error:
        if str(error) != failed:
            click.echo(with_remedy(f"error: {error}", error.hint), err=True)
        return str(error)
    if failed:
        click.echo(f"{textfile} is written again", err=True)
    return ""
