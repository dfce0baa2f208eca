# SPDX-License-Identifier: Apache-2.0
"""What ``make bench-exact`` measures in its guest: schedulers, one after the other, in instructions.

One nanosecond of that guest's clock is one instruction of any CPU. While a CPU has work, the clock does not jump.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..loaders.errors import GhostError
from ..schedulers.agents import AgentPolicySpec, AgentState
from ..schedulers.enclave import Enclave
from ..schedulers.policy import Policy, PolicyOptions
from ..schedulers.registry import POLICIES
from ..tools.output import printable_lines, with_remedy
from .bench_agents import commit_costs
from .candidates import EEVDF, Attached, Scheduler, by_command, by_policy, eevdf
from .exact_features import FEATURES
from .exact_pipe import OPERATIONS, bpf_runs, pipe
from .exact_report import Figure
from .exact_tracers import tracer_figures
from .measure import bpf_stats, perf
from .sleeper_pool import SleeperPool

TRANSACTIONS, TRACERS = "transactions", "tracers"

#: What the name of a policy with agents ends in when they decide everything.
FAST_PATH_OFF = ", fast path off"

_WARM_UP = 100
_GROUPS, _LOOPS = 2, 20
#: In each group, 20 senders send to 20 receivers.
_MESSAGES = _GROUPS * 20 * 20 * _LOOPS
_MESSAGING = f"perf bench sched messaging -g {_GROUPS} -l {_LOOPS}"
_SETTLE_S = 1.0
#: Tasks that wait while transactions are measured.
_BACKLOG = 100


def names() -> list[str]:
    """What can be measured without a command: EEVDF, each policy, FEATURES, transactions, and tracers."""
    return [EEVDF, *POLICIES, *FEATURES, TRANSACTIONS, TRACERS]


def measure(selected: Sequence[str], others: Mapping[str, Sequence[str]], sleepers: int = 0) -> int:
    """Print the figures of names() in ``selected`` and of the schedulers of commands; 1 if a scheduler failed, else 0.

    Each policy's enclave has ``sleepers`` more tasks, which have run once and sleep. A scheduler that fails is named on
    stderr, and the others are measured.
    """
    status = 0
    schedulers = {name: scheduler for known in selected for name, scheduler in _own(known, sleepers)}
    schedulers |= {name: _by_command(command) for name, command in others.items()}
    for name, scheduler in schedulers.items():
        print(f"{printable_lines(name)} …", file=sys.stderr, flush=True)
        try:
            with scheduler() as running:
                _print(_figures(name, running))
        except GhostError as error:
            status = _report(name, error)
    if TRANSACTIONS in selected:
        print(f"{TRANSACTIONS} …", file=sys.stderr, flush=True)
        try:
            _print(_transactions())
        except GhostError as error:
            status = _report(TRANSACTIONS, error)
    if TRACERS in selected:
        print(f"{TRACERS} …", file=sys.stderr, flush=True)
        try:
            with _by_policy(POLICIES["biff"].parse(), sleepers)() as running:
                for figures in tracer_figures(running.join):
                    _print(figures)
        except GhostError as error:
            status = _report(TRACERS, error)
    return status


def _own(name: str, sleepers: int) -> Iterator[tuple[str, Scheduler]]:
    """The schedulers of one of names(): a policy with agents is measured with the fast path and without."""
    if name == EEVDF:
        yield name, eevdf
    elif name in FEATURES:
        yield name, FEATURES[name]
    elif (policy := POLICIES.get(name)) is not None:
        yield name, _by_policy(policy.parse(), sleepers)
        if isinstance(policy, AgentPolicySpec):
            yield name + FAST_PATH_OFF, _by_policy(policy.parse({"fastpath": "off"}), sleepers)


def _by_policy(options: PolicyOptions[Policy], sleepers: int) -> Scheduler:
    @contextlib.contextmanager
    def scheduler() -> Iterator[Attached]:
        with by_policy(options) as running, _asleep(running.enclave, sleepers):
            yield running

    return scheduler


@contextlib.contextmanager
def _asleep(enclave: Enclave | None, count: int) -> Iterator[None]:
    if not count or enclave is None:
        yield
        return
    with SleeperPool(count, enclave.cpus) as pool:
        enclave.add_process(pool.pid)
        pool.wake()
        pool.all_passed()
        time.sleep(_SETTLE_S)
        yield


def _by_command(command: Sequence[str]) -> Scheduler:
    @contextlib.contextmanager
    def scheduler() -> Iterator[Attached]:
        with by_command(command) as running:
            # The command may go on with its start-up, on the same clock. A second that is idle passes at once.
            time.sleep(_SETTLE_S)
            yield running

    return scheduler


def _figures(name: str, running: Attached) -> list[Figure]:
    """All figures of one scheduler, if it was attached throughout."""

    def after(value: float) -> float:
        running.check()
        return value

    after(pipe(_WARM_UP, running.join, running.pipe_cgroups))
    before = running.enclave and running.enclave.agent
    operation = after(pipe(OPERATIONS, running.join, running.pipe_cgroups))
    agent = running.enclave and running.enclave.agent
    messaging = after(perf(_MESSAGING, running.join) * 1e9 / _MESSAGES)
    return [
        Figure(name, "workload", "pipe", "instructions per operation", operation),
        Figure(name, "workload", "messaging", "instructions per message", messaging),
        *(_decisions(name, before, agent) if before and agent else ()),
        *_bpf(name, running),
    ]


def _bpf(name: str, running: Attached) -> list[Figure]:
    """BPF in pipe: instructions of all programs per operation; per program, instructions per call and calls.

    A program that is tail-called counts as part of its caller. The kernel's statistics cost instructions of their own.
    """
    with bpf_stats():
        before = bpf_runs()
        pipe(OPERATIONS, running.join, running.pipe_cgroups)
        after = bpf_runs()
    running.check()
    counts: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for key, (count, ns) in after.items():
        earlier_count, earlier_ns = before.get(key, (0, 0))
        _, program = key
        counts[program] += count - earlier_count
        spent[program] += ns - earlier_ns
    rows = [Figure(name, "workload", "BPF in pipe", "instructions per operation", spent.total() / OPERATIONS)]
    for program in sorted(counts, key=lambda program: -spent[program]):
        # Programs that do not run for each operation (when a task joins, or at a tick) run too rarely to be exact.
        if counts[program] >= OPERATIONS / 10:
            per_call, calls = spent[program] / counts[program], counts[program] / OPERATIONS
            rows.append(Figure(name, "bpf", program, "instructions per call", per_call))
            rows.append(Figure(name, "bpf", program, "calls per operation", calls))
    return rows


def _decisions(name: str, before: AgentState, after: AgentState) -> Iterator[Figure]:
    """An agent's instructions per decision and message; none if the fast path left it next to nothing to decide."""
    if after.lost != before.lost or after.timeouts != before.timeouts:
        raise GhostError("its agent lost messages or timed out", hint="run it again")
    committed, messages, busy = (
        getattr(after, count) - getattr(before, count) for count in ("committed", "messages", "busy_ns")
    )
    if committed >= OPERATIONS:
        yield Figure(name, "agent", "decision", "instructions per decision", busy / committed)
        yield Figure(name, "agent", "message", "instructions per message", busy / messages)
        yield Figure(name, "agent", "messages", "messages per decision", messages / committed)


def _transactions() -> list[Figure]:
    result = commit_costs(_BACKLOG)
    if refused := {state: count for state, count in result["states"].items() if state != "COMPLETE"}:
        raise GhostError(f"transactions were refused: {refused}")
    return [
        Figure("Agent.commit", "transaction", batch, "instructions per transaction", ns)
        for batch, ns in result["ns"].items()
    ]


def _print(figures: Sequence[Figure]) -> None:
    for figure in figures:
        print(json.dumps(figure.as_row()), flush=True)


def _report(name: str, error: GhostError) -> int:
    print(with_remedy(f"error: {name}: {error}", error.hint), file=sys.stderr, flush=True)
    return 1
