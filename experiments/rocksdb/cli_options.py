# SPDX-License-Identifier: Apache-2.0
"""What the commands of these experiments share: types of options, and the steps around a measurement."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ...schedulers.launch import signals_blocked, termination_signals
from ...schedulers.policy import duration_ns
from . import calibration

Callback = Callable[[click.Context, click.Parameter, str | None], Any]


def _parsed(parse: Callable[[str], Any]) -> Callback:
    """A callback of an option: the value that ``parse`` makes of its text, whose ValueError is for the user."""

    def callback(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def duration(least_ns: int = 1) -> Callback:
    """For a duration such as 10us, in nanoseconds."""

    def parse(text: str) -> int:
        ns = 0 if text == "0" else duration_ns(text, most_s=86_400)
        if ns < least_ns:
            raise ValueError(f"{text} is too short: at least {least_ns / 1e6:g}ms")
        return ns

    return _parsed(parse)


@_parsed
def rate(text: str) -> int:
    """Requests per second, such as 20k."""
    match = re.fullmatch(r"([1-9]\d{0,7})(k?)", text)
    if match is None or int(match[1]) > 10**8:
        raise ValueError(f'"{text}" is not a number of requests/s such as 20000 or 20k')
    return int(match[1]) * (1000 if match[2] else 1)


@_parsed
def _time_scale(text: str) -> str:
    if text != calibration.AUTO:
        calibration.time_scale(text)
    return text


def time_option(name: str, default: str, help: str, least_ns: int = 1) -> Callable[[Any], Any]:
    """An option whose value is a duration in nanoseconds."""
    return click.option(
        name, callback=duration(least_ns), metavar="TIME", default=default, show_default=True, help=help
    )


time_scale_option = click.option(
    "--time-scale",
    callback=_time_scale,
    default=calibration.AUTO,
    show_default=True,
    metavar="auto|N",
    help="Stretch service times, slices and gaps by N; auto measures how slow this machine is.",
)
cpus_option = click.option("--cpus", metavar="LIST", help="CPUs to use, like 0-7.  [default: all]")
entries_option = click.option(
    "--entries", type=click.IntRange(1, 10**9), default=1_000_000, show_default=True, help="Entries of the database."
)
range_entries_option = click.option(
    "--range-entries",
    type=click.IntRange(1, 10**9),
    default=5_000,
    show_default=True,
    help="Entries that a range query reads.",
)
path_option = click.option(
    "--rocksdb-db-path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The database, made if it is missing.  [default: in ~/.cache/ghostbpf]",
)
experiment_duration_option = time_option("--experiment-duration", "15s", "The measured time.", least_ns=100_000_000)
discard_duration_option = time_option("--discard-duration", "2s", "Before the measured time.", least_ns=0)
wait_option = click.option(
    "--wait-type",
    type=click.Choice(["spin", "futex", "table"]),
    help="How idle workers wait; table: spinning, the table of hints says that they have no work.  "
    "[default: table; under EEVDF spin, futex where threads outnumber CPUs]",
)
generator_option = click.option(
    "--generator",
    type=click.Choice(["spin", "sleep"]),
    help="How the load generator waits for the next arrival.  [default: spin with 4 CPUs or more]",
)


def resolved_scale(text: str) -> float:
    """The time scale of --time-scale; a scale above 1 is told on stderr."""
    scale = calibration.time_scale(text)
    if scale != 1:
        click.echo(scale_line(scale), err=True)
    return scale


def scale_line(scale: float) -> str:
    """What every output says of the time scale."""
    if scale == 1:
        return "time scale 1: times are as given"
    return f"time scale {scale:g}: service times, slices and gaps are {scale:g} times as long"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Termination signals are pending for the block, for interruption()."""
    with signals_blocked({signal.SIGCHLD, *termination_signals()}):
        yield
