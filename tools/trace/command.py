# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf trace TOOL``: the list of tools, and their common options."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import click

from ..group import NamedGroup

if TYPE_CHECKING:
    from .tool import Tool

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


class _Tools(NamedGroup):
    """A group that lists its tools without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in TOOLS:
            return None
        from .tool_command import command_for

        return command_for(load(cmd_name), TOOLS[cmd_name])

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
