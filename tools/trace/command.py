# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf trace TOOL``: the options that all tracers have, and the list of them."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import click

from .filters import By, Filters
from .loop import Output, Pace, run
from .tool import Request, Seconds, Tool

#: Tool name (of its module here, too) and help line, in the order that help shows them.
TOOLS = {
    "runqlat": "How long tasks wait for a CPU.",
    "runqlen": "How many tasks wait on each CPU, by samples.",
    "runqslower": "Long waits for a CPU, and who ran instead.",
    "cpudist": "How long tasks are on a CPU, or off it.",
    "offcputime": "Where tasks leave the CPU and for how long, by stack.",
    "wakers": "Who wakes whom, and how often.",
    "migrations": "Which tasks move from CPU to CPU, and why.",
    "delays": "What tasks wait for: the kernel's accounting beside BPF's.",
    "dsqlat": "How long tasks wait in each sched_ext DSQ.",
    "schedlat": "Wakeup latency: until the policy decides, and until the task runs.",
    "schedrun": "Run lengths: of tasks that were preempted, and that blocked.",
    "schedfair": "Fairness: the CPU time tasks got over their fair share.",
    "schedclasstop": "CPU time by scheduling class, for each CPU.",
    "schedghostidle": "How long enclaves' CPUs idle until a task is latched.",
}

_EXAMPLES = """\b
Examples:
  sudo ghostbpf trace runqlat 1            every second, until Ctrl-C
  sudo ghostbpf trace cpudist -P 10 1      ten seconds, a histogram a process
  sudo ghostbpf trace runqlat -- make      a command, from start to end
  sudo ghostbpf trace runqlat --json 1     one JSON object a line
"""

_COMMON_EXAMPLES = "\b\nCommon to all tools:\n"
_INTERVALS = "  {name} 1 10                  a report a second, ten times\n"
_PID = "  {name} -d 5 -p 4711          five seconds of one process\n"
_COMM = "  {name} -c nginx --json       tasks of this name, as JSON lines\n"
_COMMAND = "  {name} -- ./server --port 1  a command and its children, to its end\n"


class _TraceCommand(click.Command):
    """Takes what follows ``--`` as the command to trace, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = ()
        if "--" in args:
            at = args.index("--")
            ctx.obj, args = tuple(args[at + 1 :]), args[:at]
            if not ctx.obj:
                raise click.UsageError("a command belongs after --", ctx)
        return super().parse_args(ctx, args)


class _Tools(click.Group):
    """A group that knows its tools' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command_for(load(cmd_name)) if cmd_name in TOOLS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Tools"):
            formatter.write_dl(list(TOOLS.items()))


@click.group(cls=_Tools, epilog=_EXAMPLES, subcommand_metavar="TOOL [OPTIONS] [INTERVAL [COUNT]] [-- CMD...]")
def command() -> None:
    """Trace the scheduler: any class, any kernel with BTF, and no kernel headers."""


def load(name: str) -> type[Tool]:
    """The tool called ``name``."""
    tool: type[Tool] = importlib.import_module(f".{name}", __package__).TOOL
    return tool


def _command_for(tool: type[Tool]) -> click.Command:
    params: list[click.Parameter] = [
        *(option for option in _filters() if option.name in tool.FILTERS),
        click.Option(["-d", "--duration"], type=Seconds(), metavar="SECONDS", help="Trace so long."),
        click.Option(["-T", "--timestamp"], is_flag=True, help="Print the time with each report."),
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
            params += [click.Option(["-m", "--milliseconds"], is_flag=True, help="Milliseconds, not microseconds.")]
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
    own = {parameter.name or "" for parameter in (*tool.OPTIONS, *tool.ARGUMENTS)}

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
        request = Request(filters, _by(given), unit_ns, {name: given[name] for name in own})
        pace = Pace(given["interval"], given["count"], given["duration"])
        return run(tool(request), pace, Output(given["as_json"], given["timestamp"], given.get("plot")), cmd)

    return _TraceCommand(
        tool.NAME,
        params=params,
        callback=callback,
        help=f"{tool.SUMMARY}\n\n{inspect.cleandoc(tool.__doc__ or '')}",
        epilog=_examples(tool).format(name=tool.NAME),
    )


def _examples(tool: type[Tool]) -> str:
    intervals = "" if tool.ARGUMENTS else _INTERVALS
    return tool.EXAMPLES + _COMMON_EXAMPLES + intervals + (_PID if "pid" in tool.FILTERS else "") + _COMM + _COMMAND


def _filters() -> list[click.Option]:
    return [
        click.Option(["-p", "--pid"], type=click.IntRange(1), metavar="PID", help="Only this process."),
        click.Option(["-t", "--tid"], type=click.IntRange(1), metavar="TID", help="Only this thread."),
        click.Option(["-c", "--comm"], metavar="NAME", help="Only tasks of this name."),
        click.Option(
            ["--cgroup"], type=click.Path(path_type=Path), metavar="PATH", help="Only tasks below this cgroup."
        ),
        click.Option(["--enclave"], type=click.IntRange(1, 63), metavar="ID", help="Only tasks of this enclave."),
        click.Option(["-C", "--cpu"], type=click.IntRange(0), metavar="CPU", help="Only what happens on this CPU."),
    ]


def _by(given: dict[str, Any]) -> By:
    wanted = [by for by, name in ((By.PROCESS, "pids"), (By.THREAD, "tids"), (By.CPU, "per_cpu")) if given.get(name)]
    if len(wanted) > 1:
        raise click.UsageError("only one of -P, -L and --per-cpu at a time")
    return wanted[0] if wanted else By.NOTHING
