# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf vm``: run a command in a disposable guest that has a sched_ext kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import json_option, show

if TYPE_CHECKING:
    from ..vm import Kernel

_EXAMPLES = """\b
Examples:
  sudo ghostbpf vm                             a shell in the newest kernel
  ghostbpf vm -- uname -r
  ghostbpf vm -- ghostbpf run biff -- hackbench
  ghostbpf vm --kernel oldest --cpus 4 -- python3 -m pytest tests/guest
  ghostbpf vm --kernel 6.18 --timeout 60 -- ./reproduce.sh <input >output
  ghostbpf vm --kernel ../linux/arch/x86/boot/bzImage --console -- true
  ghostbpf vm --exact --cpus 2 -- perf bench sched pipe
  ghostbpf vm --list                           list kernels

\b
Exit status: CMD's (128+N if signal N ended it); or 123 QEMU killed the
guest or its kernel (run it again), 124 time-out, 125 the guest's kernel died,
126 and 127 as in a shell, 128 the guest did not boot or was lost.
"""


@click.command("vm", epilog=_EXAMPLES, context_settings={"ignore_unknown_options": False})
@click.option(
    "--kernel",
    default="newest",
    show_default=True,
    metavar="SPEC",
    help="newest, oldest, a series (7.3), a version, or the path of a kernel image.",
)
@click.option("--cpus", type=int, metavar="N", help="Number of virtual CPUs.  [default: this machine's, at least 2]")
@click.option("--memory", default="2G", show_default=True, metavar="SIZE", help="Memory, such as 2G or 512M.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End the guest after SECONDS.  [default: no limit]")
@click.option(
    "--share",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Host directory to share, writable.  [default: the checkout]",
)
@click.option("--tty", is_flag=True, help="Give CMD a terminal (a shell always has one).")
@click.option("--accel", default="auto", show_default=True, metavar="auto|kvm|tcg", help="Accelerator.")
@click.option("--exact", is_flag=True, help="Count instructions: each takes 1 ns of the guest's clock.")
@click.option("--append", default="", metavar="WORDS", help="Add WORDS to the kernel's command line.")
@click.option("--console", is_flag=True, help="Print the kernel's console on stderr.")
@click.option("--precompile", is_flag=True, help="Compile the schedulers on the host first, which is faster.")
@click.option("--with-headers", is_flag=True, help="Give the guest its kernel's headers.")
@click.option("--mirror", metavar="URI", help="Debian archive.  [default: apt's]")
@click.option("--refresh", is_flag=True, help="Fetch the package lists, otherwise fetched once a day.")
@click.option("--list", "list_kernels", is_flag=True, help="List the kernels on offer and in the cache.")
@json_option
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def command(
    kernel: str,
    cpus: int | None,
    memory: str,
    timeout: float | None,
    share: Path | None,
    tty: bool,
    accel: str,
    exact: bool,
    append: str,
    console: bool,
    precompile: bool,
    with_headers: bool,
    mirror: str | None,
    refresh: bool,
    list_kernels: bool,
    as_json: bool,
    cmd: tuple[str, ...],
) -> int:
    """Run CMD in a disposable guest that has a sched_ext kernel, and exit with its status.

    The guest is a Debian cloud kernel in QEMU. It has the checkout (or --share DIR) at the same path, writable, and
    starts in the current directory, if that is shared. It is a new machine each time, with root as its only user. CMD
    has this terminal's stdin, stdout and stderr, and gets Ctrl-C. The kernel and the guest's packages are fetched from
    the Debian archive once and cached. Without CMD, a shell runs; Ctrl-] ends the guest.

    With --exact, times are instruction counts of all CPUs together, in nanoseconds, which repeat within a few percent
    on any host; the guest is slower.

    With --precompile, this machine first compiles the schedulers for the guest's kernel, once for each kernel. An
    emulated guest takes minutes for that.
    """
    from .. import vm as guests

    if list_kernels:
        if cmd:
            raise click.UsageError("--list takes no command")
        rows = [_row(kernel) for kernel in guests.catalog(mirror).list(refresh=refresh)]
        show(rows if as_json else map(_readable, rows), as_json=as_json, empty="no kernels on offer")
        return 0
    if as_json:
        raise click.UsageError("--json needs --list")
    interactive = not cmd and sys.stdin.isatty()
    guest = guests.Guest(
        kernel=kernel,
        cpus=cpus,
        memory=guests.parse_memory(memory),
        accel=accel,
        exact=exact,
        append=append,
        share=share,
        headers=with_headers,
        precompile=precompile,
        mirror=mirror,
        refresh=refresh,
    )
    return guests.run(
        cmd or (("bash", "-l") if interactive else ("sh",)),
        guest,
        timeout=timeout,
        console=guests.console_to_stderr if console else None,
        terminal=tty or interactive,
    )


def _row(kernel: Kernel) -> dict[str, object]:
    verdict = kernel.verdict
    return {
        "kernel": kernel.release,
        "suite": kernel.suite,
        "sched_ext": verdict and verdict.sched_ext,
        "usable": verdict and verdict.usable,
        "reason": verdict.reason if verdict else "not fetched yet",
        "cached": kernel.cached,
    }


def _readable(row: dict[str, object]) -> dict[str, object]:
    """The row for people, within 80 columns."""
    words: dict[object, str] = {None: "?", True: "yes", False: "no"}
    reason = f": {row['reason']}" if row["reason"] else ""
    return {
        "kernel": str(row["kernel"]).removesuffix("-cloud-amd64"),
        "suite": row["suite"],
        "sched_ext": words[row["sched_ext"]],
        "usable": words[row["usable"]] + reason,
        "cached": words[row["cached"]],
    }
