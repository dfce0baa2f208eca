# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf hints``: the hints that applications give, and the permission to give them."""

from __future__ import annotations

import grp
import pwd
import time
from pathlib import Path
from typing import Any

import click

from ..hints import INCLUDE, Hints, Item, admit
from ..loaders import pid_namespace
from ..loaders.descriptors import Offer
from ..loaders.errors import GhostError
from ..schedulers.enclave import Enclave, Enclaves
from .fd import hand_over, timeout_option
from .group import NamedGroup
from .output import human_ns, json_option, show

_EXAMPLES = """\b
Examples:
  sudo ghostbpf hints show 1                the hints in enclave 1
  sudo ghostbpf hints admit 1 --user www    user www may give hints
  sudo ghostbpf hints admit 1 --pid 4711    process 4711 may, once
  cc $(ghostbpf hints cflags) app.c         an application in C
"""


@click.group(cls=NamedGroup, epilog=_EXAMPLES)
def command() -> None:
    """Show the hints that applications give, and permit applications to give them."""


@command.command("show")
@click.argument("id", type=int)
@json_option
def show_one(id: int, as_json: bool) -> None:
    """Show the scheduling items of enclave ID with their work classes.

    Times are relative to now.
    """
    with Hints.of_enclave(_hinted(id).hints_path) as hints:
        rows = [_row(hints, index, item) for index, item in sorted(hints.updates())]
    if not as_json:
        rows = [{name: human_ns(v) if v and name.endswith("_ns") else v for name, v in row.items()} for row in rows]
    show(rows, as_json=as_json, empty="no hints")


@command.command("admit")
@click.argument("id", type=int)
@click.option("--user", metavar="NAME", help="The user; replaces the previous one.")
@click.option("--group", metavar="NAME", help="The group; replaces the previous one.")
@click.option("--pid", type=int, help="The process; it gets an offer, valid once.")
@timeout_option("Seconds to wait for the process.", default=60.0)
def admit_to(id: int, user: str | None, group: str | None, pid: int | None, timeout: float) -> None:
    """Permit a user, a group or a process to write hints in enclave ID.

    With --pid, print an offer; pass it to the process, which calls Hints.receive(OFFER).
    """
    if (user is None and group is None) == (pid is None):
        raise click.UsageError("name a --user, a --group, or both, or a --pid")
    path = _hinted(id).hints_path
    if pid is not None:
        _check_namespace(pid)
        with Hints.of_enclave(path) as hints, Offer(hints.fileno(), taker=pid) as offer:
            hand_over(offer, timeout)
        return
    try:
        uid = None if user is None else pwd.getpwnam(user).pw_uid
        gid = None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise click.UsageError(f"there is no {' and '.join(filter(None, (user, group)))}") from None
    admit(path, uid=uid, gid=gid)


def _check_namespace(pid: int) -> None:
    pid_namespace.need_own_proc()
    process = Path(f"/proc/{pid}")
    if process.exists() and not pid_namespace.is_initial(process):
        raise pid_namespace.NamespaceError(
            f"process {pid} is in another pid namespace: its tids differ from the scheduler's",
            hint="let a process of the initial pid namespace give the hints, by its tids",
        )


@command.command()
def cflags() -> None:
    """Print the C compiler flags that find ghostbpf_hints.h."""
    click.echo(f"-I{INCLUDE}")


def _hinted(id: int) -> Enclave:
    enclave = Enclaves.find(id)
    if not enclave.hints_path.exists():
        raise GhostError(f"the policy of enclave {id}, {enclave.policy}, reads no hints")
    return enclave


def _row(hints: Hints, index: int, item: Item) -> dict[str, Any]:
    work = hints.work_class(item.work_class)
    return {
        "item": index,
        "tid": item.tid,
        "owner": item.owner,
        "runnable": item.runnable,
        "deadline_ns": item.deadline_ns and item.deadline_ns - time.monotonic_ns(),
        "class": item.work_class,
        "kind": "repeating" if work.repeating else "one-shot" if work.one_shot else "",
        "qos": work.qos,
        "exectime_ns": work.exectime_ns,
        "period_ns": work.period_ns,
    }
