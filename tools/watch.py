# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf enclave watch``: how long an enclave has no agent while one takes over from another.

The mapped record of the enclave's channel is polled, so times are exact to the polling interval, which is printed too.
The idea is ghOSt's enclave_watcher.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from ..loaders import pid_namespace
from ..loaders.errors import GhostError
from ..schedulers import pids
from ..schedulers.agents import Agents
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.errors import NoSuchEnclave
from .fallback import remedy
from .output import human_ns, json_option

_POLL_S = 0.0002
_CHECK_S = 0.1


@dataclass(frozen=True)
class _Change:
    """The agent's tid, 0 for none, changed between the poll at ``at_ns`` and the one before."""

    tid: int
    at_ns: int
    resolution_ns: int
    switches: int


@dataclass(frozen=True)
class HandOver:
    """From one agent, by its tid, to another; ``switches`` counts the switches to tasks in between."""

    enclave: int
    before: int
    after: int
    blackout_ms: float
    switches: int
    kill_to_offline_ms: float | None
    resolution_ms: float

    def __str__(self) -> str:
        killed = self.kill_to_offline_ms
        return (
            f"agent {self.before} -> {self.after}: blackout {human_ns(self.blackout_ms * 1e6)}, "
            f"{self.switches} switches meanwhile"
            + (f"; offline {human_ns(killed * 1e6)} after the kill" if killed is not None else "")
            + f"; within {human_ns(self.resolution_ms * 1e6)}"
        )


@click.command(
    epilog="\b\nExamples:\n  sudo ghostbpf enclave watch 1 &\n  sudo ghostbpf run sol --enclave 1 --keep -- true"
)
@click.argument("id", type=int)
@click.option("--agent-pid", type=int, metavar="PID", help="First end process PID, which must be the agent.")
@click.option("--sigkill", is_flag=True, help="End it with SIGKILL, not SIGTERM.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="End after COUNT hand-overs.")
@json_option
def watch(id: int, agent_pid: int | None, sigkill: bool, count: int, as_json: bool) -> None:
    """Measure how long enclave ID has no agent while another takes over.

    Meanwhile the core schedules its tasks.
    """
    if sigkill and agent_pid is None:
        raise click.UsageError("--sigkill needs --agent-pid")
    enclave = Enclaves.find(id)
    agents = _wait_for_agent(enclave)
    changes = _changes(enclave, agents)
    first = next(changes)
    if note := pid_namespace.note():
        click.echo(note, err=True)
    click.echo(f"enclave {id}: agent {first.tid} is in charge; Ctrl-C ends", err=True)
    killed_ns = None if agent_pid is None else _end(enclave, agent_pid, first.tid, sigkill)
    for hand_over in itertools.islice(_hand_overs(enclave, first, changes, killed_ns), count):
        click.echo(json.dumps(vars(hand_over)) if as_json else str(hand_over))


def _hand_overs(
    enclave: Enclave, first: _Change, changes: Iterator[_Change], killed_ns: int | None
) -> Iterator[HandOver]:
    before = offline = first
    for change in changes:
        if not change.tid:
            offline = change
            continue
        # If no poll found the channel without an agent, the new agent followed the old one directly.
        left = offline if not offline.tid else change
        yield HandOver(
            enclave=enclave.id,
            before=before.tid,
            after=change.tid,
            blackout_ms=(change.at_ns - left.at_ns) / 1e6,
            switches=change.switches - left.switches,
            kill_to_offline_ms=None if killed_ns is None else (left.at_ns - killed_ns) / 1e6,
            resolution_ms=max(left.resolution_ns, change.resolution_ns) / 1e6,
        )
        before = offline = change
        killed_ns = None


def _changes(enclave: Enclave, agents: Agents) -> Iterator[_Change]:
    """The agent of the enclave's channel now, and then each change of it."""
    channel = agents.channels[0]
    seen, before_ns = -1, time.monotonic_ns()
    checked_ns = before_ns
    while True:
        at_ns, tid = time.monotonic_ns(), int(channel.tid)
        if tid != seen:
            yield _Change(tid, at_ns, at_ns - before_ns, enclave.counters().switches)
        elif not tid and at_ns - checked_ns > _CHECK_S * 1e9:
            _check(enclave)
            checked_ns = at_ns
        seen, before_ns = tid, at_ns
        time.sleep(_POLL_S)


def _check(enclave: Enclave) -> None:
    if enclave not in Enclaves(enclave.core):
        raise NoSuchEnclave(enclave.id)
    _check_policy(enclave)
    if Agents.open(enclave.id) is None:
        raise GhostError(f"enclave {enclave.id} has a policy without an agent by now", hint="ghostbpf enclave ls")


def _check_policy(enclave: Enclave) -> None:
    if (why := enclave.fallback) is not None:
        raise GhostError(f"enclave {enclave.id}: {why}", hint=remedy(enclave.id, why))


def _wait_for_agent(enclave: Enclave) -> Agents:
    while True:
        agents = Agents.open(enclave.id)
        if agents is not None and agents.channels[0].tid:
            return agents
        if enclave not in Enclaves(enclave.core):
            raise NoSuchEnclave(enclave.id)
        _check_policy(enclave)
        time.sleep(_CHECK_S)


def _end(enclave: Enclave, pid: int, agent: int, by_force: bool) -> int:
    """End the agent, and return the time; raises GhostError if process ``pid`` is not the agent."""
    if pids.to_initial(pid) != agent:
        local = pids.to_local([agent]).get(agent)
        raise GhostError(
            f"process {pid} is not the agent of enclave {enclave.id}", hint=f"--agent-pid {local}" if local else None
        )
    at_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL if by_force else signal.SIGTERM)
    return at_ns
