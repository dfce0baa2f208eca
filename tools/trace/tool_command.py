# SPDX-License-Identifier: Apache-2.0
"""The command line of one tool of ``ghostbpf trace``: common options, and those of the tool."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from .filters import By, Filters
from .loop import Output, Pace, run
from .tool import Request, Seconds, Tool

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


class CommandAfterDashes(click.Command):
    """Takes everything after ``--`` as the command to trace, without parsing it, into the context's ``obj``."""

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


def command_for(tool: type[Tool], summary: str) -> click.Command:
    """The command of ``tool``, with the help line ``summary``."""
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

    return CommandAfterDashes(
        tool.NAME,
        params=params,
        callback=callback,
        help=f"{summary}\n\n{inspect.cleandoc(tool.__doc__ or '')}",
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
