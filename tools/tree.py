# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf run FILE.toml``: a tree of policies for as long as a command runs; and how trees are shown."""

from __future__ import annotations

import json
import signal
from typing import Any

import click

from ..schedulers import hierarchy, trees
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.enclave_view import EnclaveView
from ..schedulers.hierarchy import TreeConfig
from ..schedulers.launch import signals_blocked, termination_signals
from ..schedulers.registry import POLICIES
from ..schedulers.trees import Leaf
from .caveats import Caveats
from .fallback import runnable_timeout
from .output import human_ns, printable, show, warn
from .run import Guard, run_command, watch
from .stats import option as stats_option
from .stats import tell_if_other

_EXAMPLES = """\b
Examples:
  sudo ghostbpf run tree.toml                    stats each second
  sudo ghostbpf run tree.toml -- ./server        in the first leaf
  sudo ghostbpf run tree.toml --leaf batch -- make -j8
  sudo ghostbpf run tree.toml --keep -- true     a tree that stays
  sudo ghostbpf enclave ls                       the leaves, their demand
  sudo ghostbpf enclave add 2 4711               a process joins a leaf
  sudo ghostbpf enclave swap 2 rr                a leaf's policy
"""

#: What is counted, and shown per second.
_COUNTED = ("grants", "preemptions", "turns")
#: What people see of a leaf.
_COLUMNS = ("enclave", "name", "policy", "granted", "demand", *_COUNTED)


def command_for(path: str) -> click.Command:
    """The command that makes the tree in file ``path``. Raises TreeError."""
    config = hierarchy.read(path, POLICIES)
    params: list[click.Parameter] = [
        click.Option(["--leaf"], metavar="NAME", help="The leaf that CMD joins.  [default: the first]"),
        click.Option(["--keep"], is_flag=True, help="Do not destroy the tree at the end."),
        stats_option(),
        click.Option(["--json", "as_json"], is_flag=True, help="Print stats as one JSON object a line."),
        runnable_timeout,
        click.Argument(["cmd"], nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]"),
    ]

    def callback(
        leaf: str | None,
        keep: bool,
        stats: str | None,
        as_json: bool,
        runnable_timeout: int | None,
        cmd: tuple[str, ...],
    ) -> int:
        number = _number_of(config, leaf)
        made = trees.temporary(
            config,
            keep_stats=stats != "off",
            keep=keep,
            runnable_timeout_ns=runnable_timeout,
            block=termination_signals(),
        )
        with signals_blocked({signal.SIGCHLD}), made as root:
            leaves = [Enclaves.find(leaf.enclave) for leaf in trees.leaves(root)]
            target = leaves.pop(number)
            tell_if_other(target, stats)
            guard = Guard(target, *leaves)
            try:
                status = run_command(target, cmd, guard, Caveats(target)) if cmd else _watch(root, as_json, guard)
            finally:
                warn(root.not_restored)
            return status or guard.status

    names = ", ".join(leaf.name for leaf in config.leaves)
    return click.Command(
        path, params=params, callback=callback, epilog=_EXAMPLES, help=f"The tree in {path}, with the leaves {names}."
    )


def _number_of(config: TreeConfig, name: str | None) -> int:
    names = [leaf.name for leaf in config.leaves]
    if name is not None and name not in names:
        raise click.BadParameter(f'there is no leaf "{name}": choose from {", ".join(names)}', param_hint="--leaf")
    return 0 if name is None else names.index(name)


def document(enclave: EnclaveView) -> dict[str, Any]:
    """What ``--json`` shows of an enclave in a tree; empty if it is in none."""
    if not enclave.tree:
        return {}
    root = EnclaveView(enclave.core, enclave.tree)
    leaves = [
        vars(leaf) | {"granted": str(leaf.granted), "priority_cpus": str(leaf.priority_cpus)}
        for leaf in trees.leaves(root)
    ]
    if enclave.is_root:
        return {"tree": {"root": root.id, "arbiter": root.policy, "idle": str(root.granted), "leaves": leaves}}
    return {"tree": {"root": root.id, **next(leaf for leaf in leaves if leaf["enclave"] == enclave.id)}}


def show_tree(root: EnclaveView) -> None:
    """Print a tree for people."""
    click.echo(f"\ntree {root.id}: {root.policy} on CPU {root.cpus}; idle: {root.granted or 'none'}")
    leaves = trees.leaves(root)
    found = [vars(leaf) | {"granted": str(leaf.granted) or "none"} for leaf in leaves]
    show([{name: row[name] for name in _COLUMNS} for row in found], as_json=False)
    for leaf in leaves:
        if leaf.priority_cpus:
            click.echo(
                f"{printable(leaf.name)}: priority CPUs {leaf.priority_cpus}, self_preempts {leaf.self_preempts}"
            )
        if leaf.poke_threshold_ns:
            threshold = human_ns(leaf.poke_threshold_ns)
            click.echo(f"{printable(leaf.name)}: poke threshold {threshold}, pokes_held {leaf.pokes_held}")


def _watch(root: Enclave, as_json: bool, guard: Guard) -> int:
    """Print a line of stats for each leaf a second."""
    listed = "; ".join(f"{printable(leaf.name)} is enclave {leaf.enclave}" for leaf in trees.leaves(root))
    click.echo(f"tree {root.id} is on CPU {root.cpus}: {listed}; add tasks: ghostbpf enclave add ID PID", err=True)

    def read() -> list[tuple[Leaf, int]]:
        return [(leaf, Enclave(root.core, leaf.enclave).counters().runtime_ns) for leaf in trees.leaves(root)]

    def show_leaves(before: list[tuple[Leaf, int]], now: list[tuple[Leaf, int]], seconds: float) -> None:
        for (old, old_runtime), (leaf, runtime) in zip(before, now, strict=True):
            rates = {name: (getattr(leaf, name) - getattr(old, name)) / seconds for name in _COUNTED}
            _print_stats(leaf, (runtime - old_runtime) / 1e9 / seconds, rates, as_json)

    return watch(root, guard, read, show_leaves)


def _print_stats(leaf: Leaf, busy: float, rates: dict[str, float], as_json: bool) -> None:
    if as_json:
        now = {"enclave": leaf.enclave, "name": leaf.name, "policy": leaf.policy, "granted": str(leaf.granted)}
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        click.echo(json.dumps({**now, "demand": leaf.demand, "busy_cpus": round(busy, 3), **rounded}))
        return
    click.echo(
        f"{printable(leaf.name)}: granted={leaf.granted or 'none'} demand={leaf.demand} busy={busy:.2f} "
        + " ".join(f"{name}={value:.0f}/s" for name, value in rates.items())
    )
