# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf trace TOOL``: the list of tools, and their common options."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import click

from ..group import NamedGroup
from .filters import By, Filters
from .loop import Output, Pace, run
from .tool import Request, Seconds, Tool

#: Each tool, which is also its module's name, and its help line, in the order of the help.
TOOLS = {
    "runqlat": "How long tasks wait for a CPU.",
    "runqlen": "How many tasks wait on each CPU, by samples.",
    "runqslower": "Long waits for a CPU, and the tasks that ran instead.",
    "cpudist": "How long tasks are on a CPU, or off it.",
    "offcputime": "Where tasks leave the CPU and for how long, by stack.",
    "wakers": "Which tasks wake which, and how often.",
    "migrations": "Which tasks move from CPU to CPU, and why.",
    "delays": "What tasks wait for, by the kernel's accounting and by BPF.",
    "dsqlat": "How long tasks wait in each sched_ext DSQ.",
    "schedlat": "Wakeup latency: until a task is latched, and until it runs.",
    "schedrun": "Run lengths of preempted and of blocking tasks.",
    "schedfair": "Fairness: CPU time over fair share, for each priority.",
    "schedclasstop": "CPU time of each scheduling class, for each CPU.",
    "schedghostidle": "How long enclaves' CPUs idle before a task is latched.",
}

_EXAMPLES = """\b
Examples:
  sudo ghostbpf trace runqlat 1            a report each second, until Ctrl-C
  sudo ghostbpf trace cpudist -P 10 1      10 s, a histogram for each process
  sudo ghostbpf trace runqlat -- make      a command, from start to end
  sudo ghostbpf trace runqlat --json 1     JSON lines
"""

_COMMON_EXAMPLES = '\b\nCommon to all tools, after "sudo ghostbpf trace":\n'
_INTERVALS = "  {name} 1 10                  a report each second, 10 times\n"
_PID = "  {name} -d 5 -p 4711          one process, for 5 s\n"
_COMM = "  {name} -c nginx --json       tasks with this name, as JSON lines\n"
_COMMAND = "  {name} -- ./server --port 1  a command and its children\n"
_EXIT_STATUS = """
\b
Exit status: CMD's own (128+N if signal N ended it, 126 or 127 if it
cannot be run); without CMD, 0 when it is done or Ctrl-C ends it. 1 if
tracing failed, 2 if the command line is wrong.
"""


class _TraceCommand(click.Command):
    """Takes everything after ``--`` as the command to trace, without parsing it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = ()
        if "--" in args:
            at = args.index("--")
            ctx.obj, args = tuple(args[at + 1 :]), args[:at]
            if not ctx.obj:
                raise click.UsageError("no command after --", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- CMD...]"]


class _Tools(NamedGroup):
    """A group that lists its tools without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command_for(load(cmd_name)) if cmd_name in TOOLS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Tools"):
            formatter.write_dl(list(TOOLS.items()))


@click.group(cls=_Tools, epilog=_EXAMPLES, subcommand_metavar="TOOL [OPTIONS] [INTERVAL [COUNT]] [-- CMD...]")
def command() -> None:
    """Trace the scheduler: every class, on any kernel with BTF, without kernel headers."""


def load(name: str) -> type[Tool]:
    """The class of tool ``name``."""
    tool: type[Tool] = importlib.import_module(f".{name}", __package__).TOOL
    return tool


def _command_for(tool: type[Tool]) -> click.Command:
    params: list[click.Parameter] = [
        *(option for option in _filters() if option.name in tool.FILTERS),
        click.Option(["-d", "--duration"], type=Seconds(), metavar="SECONDS", help="End the trace after SECONDS."),
        click.Option(["-T", "--timestamp"], is_flag=True, help="Print the time of each report."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object a line."),
    ]
    if tool.BREAKS_DOWN:
        params += [
            click.Option(["-P", "--pids"], is_flag=True, help="A histogram for each process."),
            click.Option(["-L", "--tids"], is_flag=True, help="A histogram for each thread."),
            click.Option(["--per-cpu"], is_flag=True, help="A histogram for each CPU."),
        ]
    if tool.PLOTS:
        if tool.TIMES:
            params += [click.Option(["-m", "--milliseconds"], is_flag=True, help="Use milliseconds, not microseconds.")]
        params += [
            click.Option(["--plot"], type=click.Path(path_type=Path), metavar="FILE", help="Draw to FILE.svg or .png.")
        ]
    params += [
        *tool.OPTIONS,
        *(
            tool.ARGUMENTS
            or (
                click.Argument(["interval"], type=Seconds(), required=False),
                click.Argument(["count"], type=click.IntRange(1), required=False),
            )
        ),
    ]
    own_names = {parameter.name or "" for parameter in (*tool.OPTIONS, *tool.ARGUMENTS)}

    @click.pass_context
    def callback(ctx: click.Context, /, **given: Any) -> int:
        cmd: tuple[str, ...] = ctx.obj
        filters = Filters(
            given.get("pid"),
            given.get("tid"),
            given.get("comm"),
            given.get("cgroup"),
            given.get("enclave"),
            given.get("cpu"),
            command=bool(cmd),
        )
        unit_ns = 1_000_000 if given.get("milliseconds") else 1_000
        request = Request(filters, _by(given), unit_ns, {name: given[name] for name in own_names})
        pace = Pace(given["interval"], given["count"], given["duration"])
        return run(tool(request), pace, Output(given["as_json"], given["timestamp"], given.get("plot")), cmd)

    return _TraceCommand(
        tool.NAME,
        params=params,
        callback=callback,
        help=f"{TOOLS[tool.NAME]}\n\n{inspect.cleandoc(tool.__doc__ or '')}",
        epilog=_examples(tool).format(name=tool.NAME),
    )


def _examples(tool: type[Tool]) -> str:
    intervals = "" if tool.ARGUMENTS else _INTERVALS
    pid = _PID if "pid" in tool.FILTERS else ""
    return tool.EXAMPLES + _COMMON_EXAMPLES + intervals + pid + _COMM + _COMMAND + _EXIT_STATUS


def _filters() -> list[click.Option]:
    return [
        click.Option(["-p", "--pid"], type=click.IntRange(1), metavar="PID", help="Trace this process only."),
        click.Option(["-t", "--tid"], type=click.IntRange(1), metavar="TID", help="Trace this thread only."),
        click.Option(["-c", "--comm"], metavar="NAME", help="Trace tasks with this name only."),
        click.Option(
            ["--cgroup"], type=click.Path(path_type=Path), metavar="PATH", help="Trace tasks below this cgroup only."
        ),
        click.Option(["--enclave"], type=click.IntRange(1, 63), metavar="ID", help="Trace tasks of this enclave only."),
        click.Option(["-C", "--cpu"], type=click.IntRange(0), metavar="CPU", help="Trace events on this CPU only."),
    ]


def _by(given: dict[str, Any]) -> By:
    chosen = [by for by, name in ((By.PROCESS, "pids"), (By.THREAD, "tids"), (By.CPU, "per_cpu")) if given.get(name)]
    if len(chosen) > 1:
        raise click.UsageError("only one of -P, -L and --per-cpu is allowed")
    return chosen[0] if chosen else By.NOTHING
