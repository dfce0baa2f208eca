# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf enclave``: show enclaves, and change them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from ..loaders import sched_ext
from ..loaders.errors import GhostError
from ..schedulers import cgroup_usage, cgroups, core
from ..schedulers.agents import AgentPolicySpec, AgentState
from ..schedulers.auto_join import AutoJoin
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.errors import Ejected, NoSuchEnclave, StalePins
from ..schedulers.policy import OptionError, find
from ..schedulers.processes import Rule
from ..schedulers.registry import POLICIES, from_file, is_file
from ..schedulers.resize import parse as parse_change
from ..schedulers.tasks import check, threads
from . import lending, stats, tree
from .auto_join import auto_join, follow, report
from .caveats import Caveats, counted, few, left_line, named
from .fallback import fallback_lines, runnable_timeout_option
from .group import NamedGroup
from .output import alias, human_ns, json_option, printable, printable_lines, show, warn
from .seed import seed_of
from .watch import watch

_EXAMPLES = """\b
Examples:
  sudo ghostbpf enclave ls
  sudo ghostbpf enclave show 1 --tasks --stats
  sudo ghostbpf enclave add 1 4711 4712     two processes, every thread
  sudo ghostbpf enclave add 1 --tid 4713    one thread alone
  sudo ghostbpf enclave add 1 4711 --tree   with all its descendants
  sudo ghostbpf enclave add 1 --cgroup user.slice --follow
  sudo ghostbpf enclave auto-join 1 --comm 'nginx*'   by rule, until Ctrl-C
  sudo ghostbpf enclave swap 1 rr --set slice=2ms
  sudo ghostbpf enclave resize 1 --cpus +4  one more CPU, while tasks run
  sudo ghostbpf enclave set 1 --lend yes    others may use its idle CPUs
  sudo ghostbpf enclave limits 1 off        cpu.max of cgroups is void
  sudo ghostbpf enclave watch 1             time the next upgrade of its agent
  sudo ghostbpf enclave destroy 1           tasks get their old policy back
"""


@click.group(cls=NamedGroup, epilog=_EXAMPLES)
def command() -> None:
    """Show enclaves, and change them."""


command.add_command(watch)
command.add_command(auto_join)
command.add_command(lending.command)
command.add_command(alias(auto_join), "enrol")


#: The counters by CPU that people see, besides runtime_ns.
_CPU_COLUMNS = ("cpu", "idle", "queued", "switches", "preempted", "affinity_misses")


def _example(line: str) -> str:
    return f"\b\nExamples:\n  {line}"


@command.command(epilog=_example("sudo ghostbpf enclave ls --json"))
@json_option
def ls(as_json: bool) -> None:
    """List the enclaves."""
    enclaves = list(Enclaves.open() or ())
    more = [_fallback(e) | tree.document(e) if as_json else {} for e in enclaves]
    show((_row(e) | one for e, one in zip(enclaves, more, strict=True)), as_json=as_json, empty="no enclaves")
    for e in enclaves if not as_json else ():
        if e.is_root:
            tree.show_tree(e)
    for e in enclaves if not as_json else ():
        if (why := e.fallback) is not None:
            click.echo(printable_lines(fallback_lines(e.id, why)), err=True)


@command.command("show", epilog=_example("sudo ghostbpf enclave show 1 --tasks"))
@click.argument("id", type=int)
@click.option("--tasks", is_flag=True, help="Also list its tasks.")
@click.option("--cgroups", "limited", is_flag=True, help="Also list its tasks' cgroups that have a cpu.max.")
@click.option("--stats", "with_stats", is_flag=True, help="Also show how long tasks wait and run, and how many wait.")
@json_option
def show_one(id: int, tasks: bool, limited: bool, with_stats: bool, as_json: bool) -> None:
    """Show one enclave: its policy, CPUs, counters by CPU, and tasks."""
    enclave = Enclaves.find(id)
    usages = [vars(usage) for usage in cgroup_usage.of_enclave(enclave)] if limited else []
    per_cpu = [{"cpu": cpu, **vars(counters)} for cpu, counters in enclave.per_cpu().items()]
    listed = _task_rows(enclave) if tasks else []
    agent = enclave.agent
    if as_json:
        left = enclave.departures()
        document = {
            **_row(enclave),
            "runnable_timeout_ns": enclave.runnable_timeout_ns,
            **_fallback(enclave),
            "left": {"count": left.count, "last": [{"tid": tid, "comm": comm} for tid, comm in left.last]},
            "lending": lending.document(enclave),
            **tree.document(enclave),
            "counters": vars(enclave.counters()),
            "per_cpu": per_cpu,
        }
        if agent is not None:
            document["agent"] = vars(agent)
        if limited:
            document["cgroups"] = usages
        if with_stats:
            document["stats"] = stats.document(enclave.stats())
        click.echo(json.dumps({**document, "task_list": listed} if tasks else document))
        return
    for name, value in _row(enclave).items():
        click.echo(f"{name:>9}: {printable(str(value))}")
    click.echo(f"{'left':>9}: {printable(left_line(enclave.departures()))}")
    if (why := enclave.fallback) is not None:
        click.echo(f"{'fallback':>9}: {printable(str(why))}")
    if enclave.tree:
        click.echo(f"{'tree':>9}: {enclave.tree}")
        click.echo(f"{'granted':>9}: {enclave.granted or 'none'}")
    for name, line in lending.lines(enclave).items():
        click.echo(f"{name:>9}: {line}")
    if agent is not None:
        click.echo(f"{'agent':>9}: {printable(_agent_line(agent))}")
        if agent.turns:
            click.echo(f"{'load':>9}: {_load_line(agent)}")
    if enclave.is_root:
        tree.show_tree(enclave)
    click.echo()
    show(
        ({**{name: row[name] for name in _CPU_COLUMNS}, "runtime_ns": human_ns(row["runtime_ns"])} for row in per_cpu),
        as_json=False,
        empty="it has run nothing yet",
    )
    if with_stats:
        click.echo()
        stats.show_stats(enclave.stats())
    if tasks:
        click.echo()
        show(({**row, "runtime_ns": human_ns(row["runtime_ns"])} for row in listed), as_json=False, empty="no tasks")
    if limited:
        click.echo()
        show(map(_limit_row, usages), as_json=False, empty="no cgroup of its tasks has a cpu.max")


@command.command(epilog=_example("sudo ghostbpf enclave add 1 4711 --tid 4713"))
@click.argument("id", type=int)
@click.argument("pids", type=int, nargs=-1)
@click.option("--tid", "tids", type=int, multiple=True, help="Move one thread, not its whole process.")
@click.option("--cgroup", "paths", multiple=True, metavar="PATH", help="Move all tasks of a cgroup (v2) and below.")
@click.option("--tree", is_flag=True, help="Also move all descendants of the processes.")
@click.option("--follow", "stay", is_flag=True, help="Also move tasks that enter the cgroup, until Ctrl-C.")
def add(id: int, pids: tuple[int, ...], tids: tuple[int, ...], paths: tuple[str, ...], tree: bool, stay: bool) -> None:
    """Move processes (all their threads), threads or cgroups into enclave ID.

    Children that a task forks later join the enclave. Existing children stay where they are, with a warning, unless
    --tree moves them.
    """
    if stay and not paths:
        raise click.UsageError("--follow needs --cgroup")
    if tree and not pids:
        raise click.UsageError("--tree needs a PID")
    _need_some(pids, tids, paths)
    for pid in (*pids, *tids):
        check(pid)
    rule = Rule(cgroups=tuple(map(cgroups.find, paths)))
    with _changing(id) as enclave:
        if pids or tids:
            _move(f"joined enclave {id}", pids, enclave.add_process, tids, enclave.add)
    caveats = Caveats(enclave)
    caveats.joined({*tids}.union(*map(threads, pids)))
    if pids:
        descendants = AutoJoin(enclave, Rule(parents=frozenset(pids)))
        if tree:
            report(enclave, descendants.once(), caveats=caveats)
        elif left_out := descendants.left_out():
            names = few([named(*process) for process in left_out.items()])
            click.echo(
                f"warning: {counted(len(left_out), 'descendant')} did not join: {names}\n  try: --tree", err=True
            )
    if stay:
        follow(enclave, rule, caveats=caveats)
    elif paths:
        report(enclave, AutoJoin(enclave, rule).once(), caveats=caveats)


@command.command(epilog=_example("sudo ghostbpf enclave rm 1 4711"))
@click.argument("id", type=int)
@click.argument("pids", type=int, nargs=-1)
@click.option("--tid", "tids", type=int, multiple=True, help="Move one thread, not its whole process.")
def rm(id: int, pids: tuple[int, ...], tids: tuple[int, ...]) -> None:
    """Move processes, or threads, out of enclave ID.

    Each task gets the scheduling policy back that it had before.
    """
    _need_some(pids, tids)
    with _changing(id) as enclave:
        _move(f"left enclave {id}", pids, enclave.remove_process, tids, enclave.remove)


@command.command(epilog=_example("sudo ghostbpf enclave destroy --all"))
@click.argument("id", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Destroy every enclave, detach, and remove all pins.")
def destroy(id: int | None, everything: bool) -> None:
    """Destroy enclave ID: move its tasks out and free its CPUs.

    Each task gets the scheduling policy back that it had before.
    """
    if everything == (id is not None):
        raise click.UsageError("name one enclave, or --all")
    if everything:
        _destroy_all()
    else:
        with _changing(id or 0) as enclave:
            enclave.destroy()
    click.echo("all enclaves are gone" if everything else f"enclave {id} is gone")


@command.command(epilog=_example("sudo ghostbpf enclave swap 1 rr --set slice=2ms"))
@click.argument("id", type=int)
@click.argument("policy")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="An option of the new policy.")
@runnable_timeout_option
def swap(id: int, policy: str, settings: tuple[str, ...], runnable_timeout: int | None) -> None:
    """Replace the policy of enclave ID while it runs, without a gap."""
    chosen = from_file(policy) if is_file(policy) else find(policy, POLICIES)
    if isinstance(chosen, AgentPolicySpec):
        raise GhostError(f"{policy} has an agent, a process that stays", hint=f"ghostbpf run {policy} --enclave {id}")
    for setting in settings:
        if "=" not in setting:
            raise click.BadParameter(f'"{setting}": write OPTION=VALUE', param_hint="--set")
    try:
        options = chosen.parse(dict(setting.partition("=")[::2] for setting in settings))
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    with _changing(id) as enclave:
        before = enclave.policy
        enclave.set_policy(options)
        if runnable_timeout is not None:
            enclave.set_runnable_timeout(runnable_timeout)
        seed = seed_of(options)
        click.echo(f"enclave {id}: {before} -> {policy}" + ("" if seed is None else f", seed {seed}"))


@command.command("limits", epilog=_example("sudo ghostbpf enclave limits 1 off"))
@click.argument("id", type=int)
@click.argument("on", type=click.Choice(["on", "off"]))
def limits(id: int, on: str) -> None:
    """Apply the limits of cgroups (cpu.max) to the tasks of enclave ID, as is the default, or no longer."""
    with _changing(id) as enclave:
        enclave.apply_cgroup_limits(on == "on")
    click.echo(f"enclave {id}: cgroup limits {on}")


_RESIZE_EXAMPLES = """\b
Examples:
  sudo ghostbpf enclave resize 1 --cpus 2-5           CPU 2-5 and no other
  sudo ghostbpf enclave resize 1 --cpus +4,6          CPU 4 and CPU 6, too
  sudo ghostbpf enclave resize 1 --cpus -2            no longer CPU 2
  sudo ghostbpf enclave resize 1 --cpus +3 --steal 2  CPU 3 of enclave 2
  sudo ghostbpf enclave resize 1 --cpus -2 --json     and the tasks that move
"""


@command.command(epilog=_RESIZE_EXAMPLES)
@click.argument("id", type=int)
@click.option("--cpus", "text", required=True, metavar="[+|-]LIST", help="All its CPUs, or those to add or remove.")
@click.option("--steal", type=int, metavar="ID", help="Take CPUs from enclave ID, too, in the same step.")
@json_option
def resize(id: int, text: str, steal: int | None, as_json: bool) -> None:
    """Change the CPUs of enclave ID while its tasks run.

    Tasks leave a CPU that the enclave loses within a tick, and agents learn of the change. If the change is refused,
    or the command is killed, the enclave has the CPUs that it had, or all of the new ones.

    --json names the tasks whose last CPU the enclave has lost (moved), and those that may use none of its CPUs
    (elsewhere).
    """
    if steal == id:
        raise click.UsageError("--steal takes CPUs from another enclave")
    with Enclaves.change() as enclaves:
        if enclaves is None:
            raise NoSuchEnclave(id)
        changed = [_any(enclaves, one) for one in (id, steal) if one is not None]
        unusable: list[tuple[Enclave, list[int]]] = []
        before = [(one.cpus, one.tasks() if as_json else []) for one in changed]
        changed[0].resize(parse_change(text, changed[0].cpus), steal_from=changed[1] if steal is not None else None)
        for one, (cpus, tasks) in zip(changed, before, strict=True):
            elsewhere = sorted(task.tid for task in one.tasks() if task.elsewhere)
            if as_json:
                moved = sorted(task.tid for task in tasks if task.cpu in cpus - one.cpus)
                row = {"enclave": one.id, "before": str(cpus), "after": str(one.cpus)}
                click.echo(json.dumps({**row, "moved": moved, "elsewhere": elsewhere}))
            else:
                click.echo(f"enclave {one.id}: CPU {cpus}" + (f" -> {one.cpus}" if one.cpus != cpus else ", as before"))
            unusable.append((one, elsewhere))
    for one, elsewhere in unusable:
        Caveats(one).resized(elsewhere)


def _any(enclaves: Enclaves, id: int) -> Enclave:
    """Enclave ``id``, even if it is being destroyed."""
    for enclave in enclaves:
        if enclave.id == id:
            return enclave
    raise NoSuchEnclave(id)


@contextlib.contextmanager
def _changing(id: int) -> Iterator[Enclave]:
    with Enclaves.change() as enclaves:
        if enclaves is None:
            raise NoSuchEnclave(id)
        enclave = enclaves.get(id)
        try:
            yield enclave
        finally:
            warn(enclave.not_restored)


def _need_some(pids: tuple[int, ...], tids: tuple[int, ...], paths: tuple[str, ...] = ()) -> None:
    if not (pids or tids or paths):
        raise click.UsageError("name at least one PID, --tid TID, or, to add, --cgroup PATH")


def _move(
    what: str,
    pids: Iterable[int],
    process: Callable[[int], int],
    tids: Iterable[int],
    thread: Callable[[int], object],
) -> None:
    """Move processes, then threads, and print the number of tasks, also if one of them cannot be moved."""
    moved = 0
    try:
        for pid in pids:
            moved += process(pid)
        for tid in tids:
            thread(tid)
            moved += 1
    except GhostError:
        if moved:
            click.echo(f"{counted(moved, 'task')} {what}", err=True)
        raise
    click.echo(f"{counted(moved, 'task')} {what}")


def _destroy_all() -> None:
    """Destroy everything, also pins of another version: the link behind the pin is detached in any case."""
    try:
        with Enclaves.change() as enclaves:
            for enclave in enclaves or ():
                if enclave.tree and not enclave.is_root:
                    continue  # it goes with its root
                enclave.destroy()
                warn(enclave.not_restored)
    except (Ejected, StalePins) as error:
        click.echo(printable_lines(f"{error}"), err=True)
    with core.locked():
        core.clear_pins()
    sched_ext.wait_disabled()


def _task_rows(enclave: Enclave) -> list[dict[str, Any]]:
    """The tasks of ``enclave``, with what its agent, if it has one, knows of each."""
    known = {row.pop("tid"): row for row in enclave.task_states()}
    hidden = ("original", "activity")
    rows = [{name: value for name, value in vars(task).items() if name not in hidden} for task in enclave.tasks()]
    if not known:
        return rows
    unknown = {"state": "", "for": None, "seq": None}
    return [{**row, **known.get(row["tid"], unknown)} for row in rows]


def _limit_row(usage: dict[str, Any]) -> dict[str, Any]:
    """What a table shows of a limited cgroup: times in ms."""
    more = f" +{usage['wait_usec'] / 1000:.0f}" if usage["throttled"] else ""
    return {
        "cgroup": usage["cgroup"],
        "quota": f"{usage['quota_usec'] / 1000:g}/{usage['period_usec'] / 1000:g}",
        "left": f"{usage['left_usec'] / 1000:.1f}",
        "used": f"{usage['usage_usec'] / 1000:.0f}",
        "throttled": f"{usage['throttled_usec'] / 1000:.0f}" + more,
        "periods": f"{usage['nr_throttled']}/{usage['nr_periods']}",
    }


def _agent_line(agent: AgentState) -> str:
    if agent.state == "gone":
        return f"gone: {agent.reason or 'it was killed, or told to leave'}"
    counts = ("messages", "committed", "failed", "resyncs", "lost", "timeouts")
    task = f"task {agent.tid}" if agent.tid else "a task outside of this pid namespace"
    return f"{agent.state}, {task}; " + " ".join(f"{name}={getattr(agent, name)}" for name in counts)


def _load_line(agent: AgentState) -> str:
    """The agent's rate and capacity; ``queue`` is the mean queue length of an M/M/1 model."""
    load = min(agent.rate / max(agent.capacity, 1e-9), 1.0)
    queue = f"{load / (1 - load):.2f}" if load < 1 else "endless"
    return (
        f"{load:.0%}: {agent.rate:.0f} of {agent.capacity:.0f} messages/s, {agent.messages / agent.turns:.1f} a turn, "
        f"queue {queue}; {human_ns(agent.decision_ns)}/decision"
    )


def _fallback(enclave: Enclave) -> dict[str, Any]:
    why = enclave.fallback
    return {"fallback": None if why is None else why.document()}


def _row(enclave: Enclave) -> dict[str, Any]:
    tasks = enclave.tasks()
    return {
        "enclave": enclave.id,
        "policy": enclave.policy,
        "cpus": str(enclave.cpus),
        "tasks": len(tasks),
        "elsewhere": sum(task.elsewhere for task in tasks),
        "swaps": enclave.swaps,
        "uid": enclave.uid,
        "age": f"{enclave.age:.0f}s",
    }
