# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf run POLICY``: an enclave for as long as a command runs, or until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from ..loaders.errors import GhostError
from ..schedulers import affinity, hierarchy
from ..schedulers.core import DEFAULT_ENCLAVE
from ..schedulers.cpuset import CpuListError, CpuSet
from ..schedulers.enclave import Enclave, Enclaves, check_cpus
from ..schedulers.enclave_view import Counters
from ..schedulers.errors import AgentError, NoSuchEnclave
from ..schedulers.launch import Command, signals_blocked, termination_signals
from ..schedulers.policy import OptionError, Policy, PolicyOptions, find
from ..schedulers.registry import POLICIES, from_file, is_file
from . import lending
from .caveats import Caveats, tell_departures
from .fallback import fallback_lines, runnable_timeout
from .group import NamedGroup
from .output import printable_lines, warn, with_remedy
from .seed import Repetition
from .stats import option as stats_option
from .stats import tell_if_other

_EXAMPLES = """\b
Examples:
  sudo ghostbpf run biff -- make -j8      make and its children under Biff
  sudo ghostbpf run biff --slice 20ms --cpus 2-3 -- ./server
  sudo ghostbpf run rr                    an enclave, stats each second
  sudo ghostbpf run rr --enclave 1        replace the policy of enclave 1
  sudo ghostbpf run biff --keep -- true   make an enclave that stays
  sudo ghostbpf run biff --all            every task of the fair class
  sudo ghostbpf run ./mine.py --runnable-timeout 2s -- ./load
  sudo ghostbpf run ./mine.py -- make     a policy from a Python file
  sudo ghostbpf run tree.toml -- ./server   policies that share CPUs
  sudo ghostbpf run chaos -- ./mytest     find races; --seed 7 repeats one

\b
Exit status: CMD's own (128+N if signal N ended it, 126 or 127 if it
cannot be run), 0 after Ctrl-C without CMD; or 1 if the policy, or the
enclave, failed, 2 if the command line is wrong.
"""

_T = TypeVar("_T")

#: In a context's meta: the words of the command line after POLICY.
_WORDS = f"{__name__}.words"


class _Policies(NamedGroup):
    """Each policy is a command, with the options of run and those of the policy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(POLICIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if hierarchy.is_file(cmd_name):
            from .tree import command_for

            return command_for(cmd_name)
        return _command_for(from_file(cmd_name) if is_file(cmd_name) else find(cmd_name, POLICIES))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Policies"):
            formatter.write_dl([(name, policy.summary) for name, policy in POLICIES.items()])


class _PolicyCommand(click.Command):
    """Says where ``--`` is missing, if an option is unknown."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = ctx.meta[_WORDS] = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if "--" in words or all(word.startswith("-") for word in words):
                raise
            message = error.format_message().rstrip(".")
            raise click.UsageError(f"{message} (if it is an option of CMD, write -- before CMD)", ctx) from None


@click.group(cls=_Policies, epilog=_EXAMPLES, subcommand_metavar="POLICY [OPTIONS] [-- CMD...]")
def command() -> None:
    """Schedule a command and its whole process tree by POLICY, and exit with its status.

    POLICY is a name that `ghostbpf policies` lists, or FILE.py, or FILE.py:CLASS; or FILE.toml names a tree
    of policies that share CPUs.

    Without CMD, make an enclave to which you add tasks, and print a line of stats each second until Ctrl-C.
    """


def _command_for(policy: Policy) -> click.Command:
    params: list[click.Parameter] = [
        click.Option(["--cpus"], metavar="LIST", help="The enclave's CPUs, like 0-3,6.  [default: all free CPUs]"),
        click.Option(["--enclave"], type=click.IntRange(1, 63), metavar="ID", help="Take over enclave ID, or make it."),
        click.Option(["--all", "everything"], is_flag=True, help="Schedule every task of the fair class."),
        click.Option(["--keep"], is_flag=True, help="Do not destroy the enclave at the end."),
        *lending.options(),
        click.Option(
            ["--cgroup-limits"],
            type=click.Choice(["on", "off"]),
            help="Whether the cpu.max of cgroups holds in the enclave.  [default: on]",
        ),
        stats_option(),
        click.Option(["--json", "as_json"], is_flag=True, help="Print stats as one JSON object a line."),
        runnable_timeout,
        *(click.Option([f"--{o.name}"], default=o.default, show_default=True, help=o.help) for o in policy.options),
        click.Argument(["cmd"], nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]"),
    ]

    def callback(
        cpus: str | None,
        enclave: int | None,
        everything: bool,
        keep: bool,
        lend: str | None,
        borrow: str | None,
        reclaim: str | None,
        cgroup_limits: str | None,
        stats: str | None,
        as_json: bool,
        runnable_timeout: int | None,
        cmd: tuple[str, ...],
        **texts: str,
    ) -> int:
        options = _parse_options(policy, texts)
        cpu_set = _parse_cpus(cpus) if cpus is not None else None
        if everything and cpu_set is not None:
            raise click.UsageError("--all takes every CPU: leave --cpus out")
        if everything and enclave not in (None, DEFAULT_ENCLAVE):
            raise click.UsageError(f"--all is enclave {DEFAULT_ENCLAVE}: leave --enclave out")
        temporary = Enclaves.temporary(
            options,
            cpu_set,
            id=enclave,
            full=everything,
            keep_stats=stats != "off",
            keep=keep,
            runnable_timeout_ns=runnable_timeout,
            block=termination_signals(),
        )
        with signals_blocked({signal.SIGCHLD}), _enclave(temporary) as target:
            lending.change(target, lend, borrow, reclaim)
            if cgroup_limits is not None:
                target.apply_cgroup_limits(cgroup_limits == "on")
            tell_if_other(target, stats)
            repetition = Repetition(options, click.get_current_context().meta[_WORDS])
            guard, caveats = Guard(target), Caveats(target)
            if everything:
                caveats.everything_joined()
            departed = target.departures().count
            status = run_command(target, cmd, guard, caveats) if cmd else _watch(target, as_json, guard)
            if target in Enclaves(target.core):
                tell_departures(target.departures().since(departed))
            if cmd:
                repetition.tell(cmd, status)
            return status or guard.status

    return _PolicyCommand(policy.name, params=params, callback=callback, help=policy.summary, epilog=_EXAMPLES)


def _parse_options(policy: Policy, texts: dict[str, str]) -> PolicyOptions[Policy]:
    try:
        return policy.parse({name.replace("_", "-"): text for name, text in texts.items()})
    except OptionError as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.option}") from None


def _parse_cpus(text: str) -> CpuSet:
    try:
        cpus = CpuSet.parse(text)
    except CpuListError as error:
        raise click.BadParameter(str(error), param_hint="--cpus") from None
    if not cpus:
        raise click.BadParameter("an enclave needs at least one CPU, for example 0-3", param_hint="--cpus")
    check_cpus(cpus)
    return cpus


@contextlib.contextmanager
def _enclave(temporary: AbstractContextManager[Enclave]) -> Iterator[Enclave]:
    """The enclave for the block; afterwards, warn of its tasks that did not get their old policy back."""
    with contextlib.ExitStack() as at_end:
        try:
            enclave = temporary.__enter__()
        except AgentError:
            if status := _pending_exit_status():
                raise SystemExit(status) from None
            raise
        at_end.callback(lambda: warn(enclave.not_restored))
        at_end.push(temporary)
        yield enclave


class Guard:
    """Reports, once each, that the kernel has ejected the core, that the FIFO has replaced a policy, and that the agent
    has ended.

    ``others`` are the other leaves of a tree: only their policies matter.
    """

    def __init__(self, enclave: Enclave, *others: Enclave) -> None:
        self._enclave, self._agent_process = enclave, enclave.agent_process
        self._not_replaced = [enclave, *others]
        self.ejected, self.status, self._is_warned = False, 0, False

    def check(self) -> None:
        """Check all of them. A check that fails is reported once and ends nothing: the command goes on."""
        try:
            self._check()
        except GhostError as error:
            if not self._is_warned:
                warn([error])
            self._is_warned = True

    def _check(self) -> None:
        if not self.ejected and (ejected := self._enclave.core.exited()) is not None:
            click.echo(printable_lines(f"{ejected}"), err=True)
            self.ejected = True
        for enclave in [*self._not_replaced]:
            if (why := enclave.fallback) is None:
                continue
            click.echo(printable_lines(fallback_lines(enclave.id, why)), err=True)
            self._not_replaced.remove(enclave)
            self.status = 1
            if self._agent_process is not None:
                self._agent_process.end()
                self._agent_process = None
        if self._agent_process is None:
            return
        try:
            if self._agent_process.check():
                return
            click.echo(f"another agent has taken over enclave {self._enclave.id}", err=True)
        except AgentError as error:
            click.echo(with_remedy(f"error: {error}", error.hint), err=True)
            self.status = 1
        self._agent_process = None


def _pending_exit_status() -> int:
    """The exit status for a pending termination signal; 0 if none is pending."""
    early = signal.sigpending() & termination_signals()
    return 128 + int(min(early)) if early else 0


def run_command(enclave: Enclave, arguments: tuple[str, ...], guard: Guard, caveats: Caveats) -> int:
    """Run a command in the enclave; returns its exit status."""
    if early := _pending_exit_status():
        return early
    if enclave.hints_path.exists():
        from ..hints import ENVIRONMENT

        os.environ[ENVIRONMENT] = str(enclave.hints_path)
    child = Command(arguments)

    def join(pid: int) -> None:
        affinity.check(pid, enclave)
        _join(enclave, pid)
        caveats.joined([pid])

    child.start(join)
    while (status := child.wait(0.5)) is None:
        guard.check()
    guard.check()
    return status


def _join(enclave: Enclave, pid: int) -> None:
    """Move process ``pid`` into ``enclave``, under the lock: the enclave is not destroyed meanwhile."""
    with Enclaves.change() as enclaves:
        if enclaves is None or enclave not in enclaves:
            raise NoSuchEnclave(enclave.id)
        enclave.add_process(pid)


def watch(enclave: Enclave, guard: Guard, read: Callable[[], _T], show: Callable[[_T, _T, float], None]) -> int:
    """Show what was read, a second before and now, until Ctrl-C, SIGTERM, or the end of the enclave or the core.

    ``show`` also gets the time between them, in seconds. Returns the exit status.
    """
    before, since = read(), time.monotonic()
    while signal.sigtimedwait(termination_signals(), 1.0) is None:
        guard.check()
        if guard.ejected:
            return 1
        if enclave not in Enclaves(enclave.core):
            click.echo(f"enclave {enclave.id} was destroyed", err=True)
            return 0
        now, at = read(), time.monotonic()
        show(before, now, at - since)
        before, since = now, at
    return 0


def _watch(enclave: Enclave, as_json: bool, guard: Guard) -> int:
    """Print a line of stats a second."""
    click.echo(
        f"enclave {enclave.id} is scheduled by {enclave.policy} on CPU {enclave.cpus}; "
        f"add tasks: ghostbpf enclave add {enclave.id} PID; Ctrl-C ends",
        err=True,
    )
    return watch(
        enclave,
        guard,
        enclave.counters,
        lambda before, now, seconds: _print_stats(enclave, before, now, seconds, as_json),
    )


def _print_stats(enclave: Enclave, before: Counters, now: Counters, seconds: float, as_json: bool) -> None:
    rate = {name: (getattr(now, name) - getattr(before, name)) / seconds for name in vars(now)}
    row: dict[str, Any] = {"enclave": enclave.id, "policy": enclave.policy, "tasks": enclave.nr_tasks}
    busy, lent, borrowed = (rate.pop(name) / 1e9 for name in ("runtime_ns", "lent_ns", "borrowed_ns"))
    if as_json:
        cpus = {"busy_cpus": busy, "lent_cpus": lent, "borrowed_cpus": borrowed}
        cpus = {name: round(number, 3) for name, number in cpus.items()}
        click.echo(json.dumps({**row, **cpus, **{k: round(v, 1) for k, v in rate.items()}}))
        return
    for name in ("borrowings", "reclaims"):
        del rate[name]
    click.echo(
        f"{row['policy']}: tasks={row['tasks']} busy={busy:.2f}/{len(enclave.cpus)} "
        + (f"lent={lent:.2f} borrowed={borrowed:.2f} " if enclave.lending.bits else "")
        + " ".join(f"{name}={value:.0f}/s" for name, value in rate.items())
    )
