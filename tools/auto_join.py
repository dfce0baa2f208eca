# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf enclave auto-join``: tasks join an enclave by rule, those there are and those to come."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from ..loaders.errors import KernelUnsupported, PermissionMissing
from ..schedulers import cgroups, pids
from ..schedulers.auto_join import AutoJoin, Outcome
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.launch import termination_signals
from ..schedulers.policy import duration_ns
from ..schedulers.processes import COMM_CHARS, Rule
from .caveats import Caveats
from .output import json_option, printable

_EXAMPLES = """\b
Examples:
  sudo ghostbpf enclave auto-join 1 --comm 'nginx*' --comm redis-server
  sudo ghostbpf enclave auto-join 1 --uid www-data --comm 'php*'
  sudo ghostbpf enclave auto-join 1 --cgroup system.slice/nginx.service
  sudo ghostbpf enclave auto-join 1 --parent 4711 --once
"""
_GLOB = set("*?[")


def _comm(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for glob in given:
        if len(glob) > COMM_CHARS and not _GLOB & set(glob):
            raise click.BadParameter(f'a name has {COMM_CHARS} characters at most: write "{glob[:COMM_CHARS]}"')
    return given


def _uid(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> frozenset[int]:
    return frozenset(map(_uid_of, given))


def _uid_of(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise click.BadParameter(f'there is no user "{user}"') from None


def _parent(_ctx: click.Context, _param: click.Parameter, given: tuple[int, ...]) -> frozenset[int]:
    pids.need_own_proc()
    for pid in given:
        if not Path(f"/proc/{pid}").exists():
            raise click.BadParameter(f"there is no process {pid}")
    return frozenset(given)


def _seconds(_ctx: click.Context, _param: click.Parameter, given: str) -> float:
    try:
        return duration_ns(given) / 1e9
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog=_EXAMPLES)
@click.argument("id", type=int)
@click.option("--comm", "comms", multiple=True, metavar="GLOB", callback=_comm, help="Processes of this name.")
@click.option("--cgroup", "paths", multiple=True, metavar="PATH", help="Tasks in this cgroup (v2), or below.")
@click.option("--uid", "uids", multiple=True, metavar="USER", callback=_uid, help="Tasks of this effective user.")
@click.option(
    "--parent", "parents", type=int, multiple=True, metavar="PID", callback=_parent, help="Descendants of this process."
)
@click.option("--once", is_flag=True, help="Enrol what there is, and end.")
@click.option(
    "--period", default="1s", show_default=True, metavar="TIME", callback=_seconds, help="Time between two scans."
)
@json_option
def auto_join(
    id: int,
    comms: tuple[str, ...],
    paths: tuple[str, ...],
    uids: frozenset[int],
    parents: frozenset[int],
    once: bool,
    period: float,
    as_json: bool,
) -> None:
    """Put tasks into enclave ID by rule: those there are and, until Ctrl-C, those to come.

    A task is meant that fits every kind of option given, by one of its values. The kernel's process events say when to
    look. Scans find what no event tells: moves to another cgroup, or everything where the kernel tells no events.
    Tasks stay when they fit no longer. Agents are never enrolled.
    """
    if not (comms or paths or uids or parents):
        raise click.UsageError("say who is meant: --comm, --cgroup, --uid or --parent")
    enclave = Enclaves.find(id)
    directories = tuple(map(cgroups.directory_of, paths))
    for path, directory in zip(paths, directories, strict=True):
        if not cgroups.exists(directory):
            click.echo(printable(f"there is no cgroup {path} yet"), err=True)
    rule = Rule(comms, directories, uids, parents)
    if once:
        report(enclave, AutoJoin(enclave, rule).once(), as_json)
    else:
        follow(enclave, rule, period, as_json)


def follow(
    enclave: Enclave, rule: Rule, period: float = 1.0, as_json: bool = False, caveats: Caveats | None = None
) -> None:
    """Enrol by ``rule``, and tell of each task, until a signal asks to end."""
    from ..schedulers.process_events import ProcessEvents  # pyroute2 takes longer than all the rest

    with _stop() as stop, contextlib.ExitStack() as opened:
        events = None
        try:
            events = opened.enter_context(ProcessEvents())
        except (KernelUnsupported, PermissionMissing) as error:
            click.echo(f"{error}: looking at all tasks every {period:g} s instead", err=True)
        click.echo(f"enrolling in enclave {enclave.id}; Ctrl-C ends", err=True)
        joining = AutoJoin(enclave, rule, events, period=period)
        report(enclave, joining.follow(stop), as_json, caveats)
        if joining.resyncs:
            click.echo(f"process events got lost {joining.resyncs} times: all tasks were looked at again", err=True)


def report(
    enclave: Enclave, outcomes: Iterable[Outcome], as_json: bool = False, caveats: Caveats | None = None
) -> None:
    """Tell of each task, with what its user must know, and at the end how many joined."""
    joined, caveats = 0, caveats or Caveats(enclave)
    for outcome in outcomes:
        joined += outcome.error is None
        if as_json:
            click.echo(json.dumps(vars(outcome)))
        elif outcome.error is None:
            click.echo(printable(f"{outcome.tid} {outcome.comm} ({outcome.cause})"))
        else:
            click.echo(printable(f"cannot move task {outcome.tid} ({outcome.comm}): {outcome.error}"), err=True)
        if outcome.error is None:
            caveats.joined([outcome.tid])
    click.echo(f"{joined} tasks joined enclave {enclave.id}", err=True)


@contextlib.contextmanager
def _stop() -> Iterator[int]:
    """A descriptor that becomes readable when a signal asks us to end: no task is left half moved."""
    stop = os.eventfd(0)
    before = {number: signal.signal(number, lambda *_: os.eventfd_write(stop, 1)) for number in termination_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop)
