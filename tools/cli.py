# SPDX-License-Identifier: Apache-2.0
"""The ``ghostbpf`` command: one group, its commands imported only when they are used."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import click

from .group import NamedGroup

#: Command name to module and help line, in the order of the help text. A module is of this package, except those of
#: bench and experiment, which stand above it: they are named here and never imported by another command.
_COMMANDS = {
    "run": ("run", "Schedule a command, or the tasks you add, by a policy."),
    "enclave": ("enclave", "Show enclaves, and change them."),
    "apply": ("service.command", "Make the enclaves that a file describes."),
    "service": ("service.service", "Keep the enclaves that a file describes, until it is stopped."),
    "top": ("top.command", "Show enclaves, CPUs and tasks, live, on a screen or once."),
    "status": ("top.status", "Say in words what runs, and whether all is well."),
    "metrics": ("metrics.command", "Export metrics: for Prometheus, node_exporter and scx's tools."),
    "hints": ("hints", "Show applications' hints, and permit applications to give them."),
    "pushtosched": ("pushtosched", "Move tasks, listed on stdin, to any scheduling class."),
    "trace": ("trace.command", "Trace the scheduler: latencies, run lengths, queues, stacks."),
    "record": ("record.command", "Record what the scheduler does, for Perfetto."),
    "explain": ("record.explain", "Say why a task waited, from a recording."),
    "compare": ("record.compare", "Compare two recordings."),
    "bench": (".experiments.bench.command", "Compare schedulers on workloads."),
    "experiment": (".experiments.command", "Run ghOSt's experiments and microbenchmarks."),
    "mcp": ("mcp.command", "Serve these commands as tools of the Model Context Protocol."),
    "fd": ("fd", "Pass an open descriptor to another process."),
    "policies": ("policies", "List the policies."),
    "new": ("new", "Write a package with a policy of your own, in Python."),
    "why": ("why", "Say why the kernel ejected ghostbpf, or a policy was replaced."),
    "doctor": ("doctor", "Check whether this machine can run ghostbpf."),
    "vm": ("vm_command", "Run a command in a throw-away guest with a sched_ext kernel."),
}

EXAMPLES = """\b
Examples:
  ghostbpf doctor                            check this machine
  sudo ghostbpf run biff -- make -j8         one command under Biff
  sudo ghostbpf run biff --cpus 2-3 --keep   an enclave to add tasks to
  sudo ghostbpf enclave add 1 4711           process 4711 joins enclave 1
  sudo ghostbpf enclave swap 1 rr            another policy, with no gap
  sudo ghostbpf top                          what runs, waits and for how long
  sudo ghostbpf bench pipe --policy biff     Biff against EEVDF
  ghostbpf new my_policy                     a policy of your own, in Python
  ghostbpf vm -- ghostbpf run biff -- ls     in a guest with sched_ext
"""


class Lazy(NamedGroup):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = importlib.import_module(f".{module}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .version import version  # importlib.metadata takes tens of milliseconds

        click.echo(f"ghostbpf {version()}")
        ctx.exit()


@click.group(cls=Lazy, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def ghostbpf() -> None:
    """ghOSt's scheduling model on mainline Linux: enclaves of CPUs, each with its own scheduler,
    written in BPF C or Python and replaced while they run."""


def main() -> None:
    """The entry point: an exception becomes one message with a hint, and the documented exit status."""
    if os.environ.get("_GHOSTBPF_COMPLETE", "").endswith("_complete"):
        # stderr of a completion is the terminal: a message would appear inside the command line.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        status = ghostbpf.main(prog_name="ghostbpf", standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(_safe(shown.getvalue()), err=True, nl=False)
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        # The reader of stdout has gone. Python flushes stdout at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        if not hasattr(error, "exit_status"):
            raise
        status = report(error)
    sys.exit(status if isinstance(status, int) else 0)


def report(error: Any) -> int:
    """Print an error with its hint to stderr, and return its exit status."""
    click.echo(_safe(f"error: {error}"), err=True)
    if hint := getattr(error, "hint", None):
        click.echo(_safe(f"  try: {hint}"), err=True)
    return int(error.exit_status)


def _safe(message: str) -> str:
    from .output import printable_lines  # imported late: it imports modules that no error needs

    return printable_lines(message)


if __name__ == "__main__":
    main()
