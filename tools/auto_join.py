# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf enclave auto-join``: existing and new tasks join an enclave by rule."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from ..loaders import pid_namespace
from ..loaders.errors import KernelUnsupported, PermissionMissing
from ..schedulers import cgroups
from ..schedulers.auto_join import AutoJoin, Outcome
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.launch import termination_signals
from ..schedulers.policy import duration_ns
from ..schedulers.processes import COMM_CHARS, Rule
from .caveats import Caveats, counted
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
    pid_namespace.need_own_proc()
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
@click.option("--once", is_flag=True, help="Move the tasks that match now, and end.")
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
    """Move tasks into enclave ID by rule: existing tasks and, until Ctrl-C, new ones.

    A task matches if, for each kind of option given, it matches one of the values. The kernel's process events report
    new tasks and changes of name and user. Moves between cgroups have no event: a scan finds them, and everything
    else if the kernel reports no events. A task that no longer matches stays. Agents never join.
    """
    if not (comms or paths or uids or parents):
        raise click.UsageError("give a rule: --comm, --cgroup, --uid or --parent")
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
    """Move tasks in by ``rule``, and report each, until a termination signal."""
    from ..schedulers.process_events import ProcessEvents  # imported late: pyroute2 takes longer than everything else

    with _stop() as stop, contextlib.ExitStack() as opened:
        events = None
        try:
            events = opened.enter_context(ProcessEvents())
        except (KernelUnsupported, PermissionMissing) as error:
            click.echo(f"{error}: scanning all tasks every {period:g} s instead", err=True)
        click.echo(f"moving tasks into enclave {enclave.id}; Ctrl-C ends", err=True)
        joining = AutoJoin(enclave, rule, events, period=period)
        report(enclave, joining.follow(stop), as_json, caveats)
        if joining.resyncs:
            click.echo(f"process events were lost {joining.resyncs} times: all tasks were scanned again", err=True)


def report(
    enclave: Enclave, outcomes: Iterable[Outcome], as_json: bool = False, caveats: Caveats | None = None
) -> None:
    """Print each outcome, with its caveats, and at the end how many tasks joined."""
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
    click.echo(f"{counted(joined, 'task')} joined enclave {enclave.id}", err=True)


@contextlib.contextmanager
def _stop() -> Iterator[int]:
    """A descriptor that becomes readable on a termination signal, so that no move is interrupted."""
    stop = os.eventfd(0)
    before = {number: signal.signal(number, lambda *_: os.eventfd_write(stop, 1)) for number in termination_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop)
