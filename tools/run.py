# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf run POLICY``: an enclave for the life of a command, or until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import click

from .. import hints
from ..loaders.errors import GhostError
from ..schedulers import affinity
from ..schedulers.agents import AgentPolicySpec
from ..schedulers.core import DEFAULT_ENCLAVE
from ..schedulers.cpuset import CpuListError, CpuSet
from ..schedulers.enclave import Counters, Enclave, Enclaves, check_cpus
from ..schedulers.errors import EnclaveBusy, NoSuchEnclave
from ..schedulers.launch import Command, termination_signals
from ..schedulers.policy import Policy, find
from ..schedulers.registry import POLICIES, from_file, is_file
from ..schedulers.userspace import AgentError, AgentProcess, UpgradeError
from .caveats import Caveats, tell_departures
from .output import printable_lines, warn

_EXAMPLES = """\b
Examples:
  sudo ghostbpf run biff -- make -j8      make and its children under Biff
  sudo ghostbpf run biff --slice 20ms --cpus 2-3 -- ./server
  sudo ghostbpf run rr                    an enclave, and a line a second
  sudo ghostbpf run rr --enclave 1        enclave 1 goes on under rr, no gap
  sudo ghostbpf run biff --keep -- true   leave it: ghostbpf enclave ls
  sudo ghostbpf run biff --all            every task of the fair class
  sudo ghostbpf run ./mine.py -- make     the Python policy in a file
"""


class _Policies(click.Group):
    """Each policy is a command, with the options of run and its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(POLICIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return _command_for(from_file(cmd_name) if is_file(cmd_name) else find(cmd_name, POLICIES))


@click.group(cls=_Policies, epilog=_EXAMPLES, subcommand_metavar="POLICY [OPTIONS] [-- CMD...]")
def command() -> None:
    """Schedule a command and its whole process tree by POLICY, and exit with its status.

    POLICY is one that `ghostbpf policies` lists, or FILE.py, or FILE.py:CLASS.

    Without CMD: an enclave that you add tasks to, with a line of stats a second, until Ctrl-C.
    """


def _command_for(policy: Policy) -> click.Command:
    params: list[click.Parameter] = [
        click.Option(["--cpus"], metavar="LIST", help="The enclave's CPUs, like 0-3,6.  [default: all that are free]"),
        click.Option(
            ["--enclave"], type=click.IntRange(1, 63), metavar="ID", help="Take over this enclave, or make it."
        ),
        click.Option(["--all", "everything"], is_flag=True, help="Schedule every task of the fair class."),
        click.Option(["--keep"], is_flag=True, help="Leave the enclave there at the end."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print stats as one JSON object a line."),
        *(click.Option([f"--{o.name}"], default=o.default, show_default=True, help=o.help) for o in policy.options),
        click.Argument(["cmd"], nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]"),
    ]

    def callback(
        cpus: str | None,
        enclave: int | None,
        everything: bool,
        keep: bool,
        as_json: bool,
        cmd: tuple[str, ...],
        **given: str,
    ) -> int:
        options = {name.replace("_", "-"): value for name, value in given.items()}
        _check_options(policy, options)
        wanted = _parse_cpus(cpus) if cpus is not None else None
        if everything and wanted is not None:
            raise click.UsageError("--all takes every CPU: leave --cpus out")
        if everything and enclave not in (None, DEFAULT_ENCLAVE):
            raise click.UsageError(f"--all is enclave {DEFAULT_ENCLAVE}: leave --enclave out")
        with (
            _signals(),
            _agent_process(policy, options, keep) as agent_process,
            _enclave(policy, options, wanted, enclave, everything, keep, agent_process) as target,
        ):
            guard, caveats = _Guard(target, agent_process), Caveats(target)
            if everything:
                caveats.everything_joined()
            left = target.departures().count
            status = _run_command(target, cmd, guard, caveats) if cmd else _watch(target, as_json, guard)
            if target in Enclaves(target.core):
                tell_departures(target.departures().since(left))
            return status or guard.status

    return click.Command(policy.name, params=params, callback=callback, help=policy.summary, epilog=_EXAMPLES)


def _check_options(policy: Policy, options: dict[str, str]) -> None:
    for option in policy.options:
        try:
            option.parse(options[option.name])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"--{option.name}") from None


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
def _agent_process(policy: Policy, options: dict[str, str], keep: bool) -> Iterator[AgentProcess | None]:
    """The agent processes of a policy that has any; with ``keep`` they stay unless something fails."""
    if not isinstance(policy, AgentPolicySpec):
        yield None
        return
    agent_process = AgentProcess(policy, policy.values(options), stay=keep)
    try:
        yield agent_process
    except BaseException:
        agent_process.end()
        raise
    if not keep:
        agent_process.end()


@contextlib.contextmanager
def _enclave(
    policy: Policy,
    options: dict[str, str],
    cpus: CpuSet | None,
    id: int | None,
    everything: bool,
    keep: bool,
    agent_process: AgentProcess | None,
) -> Iterator[Enclave]:
    """The enclave to run in; one made here is destroyed at the end unless it is to be kept."""
    with Enclaves.create(full=everything, ahead=policy) as enclaves:
        # Until here a signal ends us and the core with us. Now they wait for whoever asks for them next.
        signal.pthread_sigmask(signal.SIG_BLOCK, termination_signals())
        existing = None
        if id is not None:
            with contextlib.suppress(NoSuchEnclave):
                existing = enclaves.get(id)
        if existing is not None:
            if cpus is not None and cpus != existing.cpus:
                raise EnclaveBusy(existing.id, str(existing.cpus))
            _upgrade(existing, policy, options, agent_process)
            enclave = existing
        else:
            enclave = enclaves.new(
                _choose_cpus(enclaves, cpus), policy, options, id=DEFAULT_ENCLAVE if everything else id
            )
    try:
        if agent_process is not None and existing is None:
            try:
                agent_process.take_over(enclave)
            except AgentError:
                keep = False
                if status := _told_to_end():
                    raise SystemExit(status) from None
                raise
        yield enclave
    finally:
        if existing is None and not keep and enclave.core.attached:
            with Enclaves.change() as now:
                if now is not None and enclave in now:
                    ending = now.get(enclave.id)
                    ending.destroy()
                    warn(ending.not_restored)


def _upgrade(enclave: Enclave, policy: Policy, options: dict[str, str], agent_process: AgentProcess | None) -> None:
    before = enclave.policy
    try:
        enclave.swap(policy, options, agent_process)
    except AgentError as error:
        if status := _told_to_end():
            raise SystemExit(status) from None
        if (agent := enclave.agent) is not None and agent.state == "gone":
            raise
        raise UpgradeError(enclave.id, error.reason, before) from None


def _choose_cpus(enclaves: Enclaves, cpus: CpuSet | None) -> CpuSet:
    if cpus is not None:
        return cpus
    if free := enclaves.free_cpus():
        return free
    owner = next(iter(enclaves))
    raise EnclaveBusy(owner.id, str(owner.cpus))


class _Guard:
    """Tells, once each, what a user must know who only waits: the kernel's end of the scheduler, and the agent's."""

    def __init__(self, enclave: Enclave, agent_process: AgentProcess | None) -> None:
        self._enclave, self._agent_process = enclave, agent_process
        self.ejected, self.status, self._is_warned = False, 0, False

    def look(self) -> None:
        """Look around, and tell. Where that is not possible, this is told once: it is no reason to leave a command."""
        try:
            self._look()
        except GhostError as error:
            if not self._is_warned:
                warn([error])
            self._is_warned = True

    def _look(self) -> None:
        if not self.ejected and (ejected := self._enclave.core.exited()) is not None:
            click.echo(printable_lines(f"{ejected}"), err=True)
            self.ejected = True
        if self._agent_process is None:
            return
        try:
            if self._agent_process.check():
                return
            click.echo(f"another agent has taken enclave {self._enclave.id} over", err=True)
        except AgentError as error:
            click.echo(printable_lines(f"error: {error}\n  try: {error.hint}"), err=True)
            self.status = 1
        self._agent_process = None


def _told_to_end() -> int:
    """The exit status where a signal has asked us to end meanwhile, else 0."""
    early = signal.sigpending() & termination_signals()
    return 128 + int(min(early)) if early else 0


def _run_command(enclave: Enclave, arguments: tuple[str, ...], guard: _Guard, caveats: Caveats) -> int:
    if early := _told_to_end():
        return early
    if enclave.hints_path.exists():
        os.environ[hints.ENVIRONMENT] = str(enclave.hints_path)
    child = Command(arguments)

    def join(pid: int) -> None:
        affinity.check(pid, enclave)
        _join(enclave, pid)
        caveats.joined([pid])

    child.start(join)
    while (status := child.wait(0.5)) is None:
        guard.look()
    guard.look()
    return status


def _join(enclave: Enclave, pid: int) -> None:
    """Put process ``pid`` into ``enclave``, which is not to be destroyed, or made anew, just then."""
    with Enclaves.change() as enclaves:
        if enclaves is None or enclave not in enclaves:
            raise NoSuchEnclave(enclave.id)
        enclave.add_process(pid)


def _watch(enclave: Enclave, as_json: bool, guard: _Guard) -> int:
    """A line of stats a second until Ctrl-C, SIGTERM, the enclave's end or the kernel's."""
    click.echo(
        f"enclave {enclave.id} is scheduled by {enclave.policy} on CPU {enclave.cpus}; "
        f"add tasks: ghostbpf enclave add {enclave.id} PID; Ctrl-C ends",
        err=True,
    )
    before, since = enclave.counters(), time.monotonic()
    while signal.sigtimedwait(termination_signals(), 1.0) is None:
        guard.look()
        if guard.ejected:
            return 1
        if enclave not in Enclaves(enclave.core):
            click.echo(f"enclave {enclave.id} was destroyed", err=True)
            return 0
        now, at = enclave.counters(), time.monotonic()
        _print_stats(enclave, before, now, at - since, as_json)
        before, since = now, at
    return 0


def _print_stats(enclave: Enclave, before: Counters, now: Counters, seconds: float, as_json: bool) -> None:
    rate = {name: (getattr(now, name) - getattr(before, name)) / seconds for name in vars(now)}
    row: dict[str, Any] = {"enclave": enclave.id, "policy": enclave.policy, "tasks": enclave.nr_tasks}
    busy = rate.pop("runtime_ns") / 1e9
    if as_json:
        click.echo(json.dumps({**row, "busy_cpus": round(busy, 3), **{k: round(v, 1) for k, v in rate.items()}}))
        return
    click.echo(
        f"{row['policy']}: tasks={row['tasks']} busy={busy:.2f}/{len(enclave.cpus)} "
        + " ".join(f"{name}={value:.0f}/s" for name, value in rate.items())
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """For the block, SIGCHLD waits to be asked for; at its end whoever asked us too late to end is forgotten."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        while signal.sigtimedwait(termination_signals(), 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
