# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment``: the list of experiments, each imported only when it is used."""

from __future__ import annotations

import importlib

import click

from ..tools.group import NamedGroup

#: Each experiment: the module and the name of its click command, and its help line, in the order of the help.
_EXPERIMENTS = {
    "rocksdb": ("rocksdb.command", "rocksdb", "RocksDB under an open-loop load."),
    "antagonist": ("rocksdb.command", "antagonist", "Threads that want all CPU time, or a share."),
    "centralized": ("rocksdb.sweep_command", "centralized", "Sweep: short requests alone."),
    "shinjuku": ("rocksdb.sweep_command", "shinjuku", "Sweep: a few long requests among short ones."),
    "shenango": ("rocksdb.sweep_command", "shenango", "Sweep: short requests beside an antagonist."),
    "shinjuku-shenango": ("rocksdb.sweep_command", "shinjuku_shenango", "Sweep: both."),
    "global-scalability": ("micro.scalability_command", "global_scalability", "How a global agent scales with CPUs."),
    "costs": ("micro.costs_command", "command", "Switches, transactions, messages, in system calls."),
    "simple-exp": ("micro.simple_command", "simple_exp", "Threads that nap, spin, and leave the enclave."),
    "simple-cfs": ("micro.simple_command", "simple_cfs", "Nice values, and threads that start on one CPU."),
    "simple-edf": ("micro.simple_command", "simple_edf", "Threads with deadlines in a table of hints."),
    "report": ("report_command", "report", "Write the report of sweeps, one HTML page."),
}

_EXAMPLES = """\b
Examples:
  ghostbpf experiment rocksdb --throughput 5k     RocksDB under EEVDF
  sudo ghostbpf experiment shinjuku eevdf ghost   the paper's comparison
  ghostbpf experiment shinjuku eevdf --dry-run    how long that takes
  ghostbpf experiment report RESULTS              tables and plots
"""


class _Experiments(NamedGroup):
    """A group that lists its experiments without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_EXPERIMENTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _EXPERIMENTS:
            return None
        module, name, _ = _EXPERIMENTS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Experiments"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _EXPERIMENTS.items()])


@click.group(cls=_Experiments, epilog=_EXAMPLES)
def command() -> None:
    """Run the workloads of ghOSt's paper, under EEVDF and under policies."""
