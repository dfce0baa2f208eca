# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf fd``: pass an open file, or a pinned BPF map, to a process that may not open it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ..loaders.descriptors import TIMEOUT, DescriptorError, Offer, duplicate, take
from ..loaders.errors import GhostError
from ..loaders.handle import open_pinned
from .group import NamedGroup
from .output import json_option

_EXAMPLES = """\b
Examples:
  ghostbpf fd send notes.txt                 print an offer of notes.txt
  ghostbpf fd receive @0001f:5e3a07...       print the contents of notes.txt
  ghostbpf fd send f | ghostbpf fd receive   both at once
  ghostbpf fd receive @0001f:5e3a07... --fd 5 -- ./app   ./app gets it as 5
  ghostbpf fd send --pid 4711 --fd 7         descriptor 7 of process 4711
\b
A map in bpffs, for reading and writing, for an unprivileged user:
  sudo ghostbpf fd send --write /sys/fs/bpf/... --timeout 60
"""
_FIRST_FREE = 3
_CHUNK = 1 << 16


@click.group(cls=NamedGroup, epilog=_EXAMPLES)
def command() -> None:
    """Pass an open descriptor to another process, once.

    The sender prints an offer: an address and a nonce. The first process that presents both in time gets the
    descriptor. Other users can read them on a command line, but they are useless once the descriptor was passed.
    """


def timeout_option(says: str, default: float = TIMEOUT) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--timeout, in seconds."""
    return click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=default, show_default=True, help=says
    )


@command.command(epilog=_EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--write", is_flag=True, help="Open PATH to read and to write.")
@click.option("--pid", type=int, help="Send a descriptor of process PID, not PATH.")
@click.option("--fd", type=click.IntRange(0), help="The descriptor of process PID.")
@click.option("--to", type=int, metavar="PID", help="Pass it to process PID only.")
@timeout_option("Seconds to wait for a receiver.")
@json_option
def send(
    path: Path | None, write: bool, pid: int | None, fd: int | None, to: int | None, timeout: float, as_json: bool
) -> None:
    """Open PATH (a file, or a BPF object pinned in bpffs) and pass it on.

    It goes to the first process that presents the offer in time.
    """
    if (path is None) == (pid is None) or (pid is None) != (fd is None):
        raise click.UsageError("name a PATH, or --pid and --fd")
    opened = _open(path, write) if path is not None else duplicate(pid or 0, fd or 0)
    with Offer(opened, taker=to) as offer:
        hand_over(offer, timeout, as_json=as_json)


def hand_over(offer: Offer, timeout: float, *, as_json: bool = False) -> None:
    """Print the offer, and wait until a process takes it; raises DescriptorError if none does."""
    click.echo(json.dumps({"offer": str(offer)}) if as_json else str(offer))
    sys.stdout.flush()
    taker = offer.serve(timeout)
    click.echo(f"process {taker} has it", err=True)


@command.command("receive", epilog=_EXAMPLES)
@click.argument("offer", default="-")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option(
    "--fd", type=click.IntRange(0), default=_FIRST_FREE, show_default=True, help="The descriptor's number in CMD."
)
@timeout_option("Seconds to wait for the sender.")
def receive_one(offer: str, cmd: tuple[str, ...], fd: int, timeout: float) -> None:
    """Receive an offered descriptor, and print its contents, or run CMD with it.

    OFFER is the line that the sender printed; without it, or with -, it is read from standard input.
    """
    text = sys.stdin.readline().strip() if offer == "-" else offer
    got = take(text, timeout)
    if cmd:
        _run(cmd, got, fd)
    _print(got)


def _open(path: Path, write: bool) -> int:
    try:
        if _is_bpffs(path):
            return open_pinned(path, read_only=not write)
        return os.open(path, os.O_RDWR if write else os.O_RDONLY)
    except OSError as error:
        raise GhostError(f"cannot open {path}: {error.strerror}") from None


def _is_bpffs(path: Path) -> bool:
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines())
    return any(fields[2] == number and fields[fields.index("-") + 1] == "bpf" for fields in mounts)


def _run(cmd: tuple[str, ...], got: int, fd: int) -> None:
    os.dup2(got, fd)
    os.set_inheritable(fd, True)
    try:
        os.execvp(cmd[0], cmd)
    except OSError as error:
        raise GhostError(f"cannot run {cmd[0]}: {error.strerror}") from None


def _print(fd: int) -> None:
    while chunk := _read(fd):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        raise DescriptorError(
            f"the received descriptor cannot be read: {error.strerror}", hint="-- CMD runs a program with it, open as 3"
        ) from None
