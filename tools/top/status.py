# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf status``: in words, what runs, and whether all is well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import click

from ...schedulers.cpuset import CpuSet
from ..caveats import counted
from ..output import human_ns, json_option, printable
from ..service import state
from . import sample
from .document import document
from .frame import EnclaveRow, Frame, between
from .health import core_lines, ejection_lines, verdict

_EXAMPLES = """\b
Examples:
  sudo ghostbpf status
  sudo ghostbpf status --json | jq '.enclaves[] | select(.healthy | not)'
  sudo ghostbpf status >/dev/null || sudo ghostbpf why

\b
Exit status: 0 if all is well, also without a core; 1 if an enclave or the
core needs attention, or the core cannot be read.
"""


@click.command(epilog=_EXAMPLES)
@json_option
def command(as_json: bool) -> int:
    """Say what runs: enclaves, policies, agents, CPUs, whether all is well, and the last ejection.

    --json prints the document of `ghostbpf top --once --json`, without rates, and the service that runs.
    """
    frame, service = between(None, sample.read()), state.read()
    if as_json:
        click.echo(
            json.dumps({**document(frame, frame.tasks), "service": None if service is None else asdict(service)})
        )
    elif frame.error is not None:
        raise frame.error
    else:
        managed = [] if service is None else [f"service, process {service.pid}, {service.file}: {service.status}"]
        click.echo("\n".join(map(printable, [*lines(frame), *managed])))
    is_well = frame.state in ("attached", "detached") and all(verdict(row).is_well for row in frame.enclaves)
    return 0 if is_well else 1


def lines(frame: Frame) -> Iterator[str]:
    """The summary."""
    if frame.state != "attached":
        yield from core_lines(frame)
    else:
        whose = "every task of the fair class" if frame.full else "tasks that join an enclave"
        yield f"the core is attached, for {whose}"
        for row in frame.enclaves:
            yield from _enclave_lines(row)
        free = CpuSet(cpu.cpu for cpu in frame.cpus if not cpu.enclave)
        yield f"CPUs of no enclave: {free or 'none'}"
        if frame.ejection is not None:
            yield from ejection_lines(frame.ejection)
            yield "  try: sudo ghostbpf why"
    if frame.ejection is None:
        yield "the kernel has not ejected ghostbpf since boot"


def _enclave_lines(row: EnclaveRow) -> Iterator[str]:
    health = verdict(row)
    tree = f" in the tree of enclave {row.tree}" if row.tree else ""
    # The root of a tree has no policy.
    yield f"enclave {row.id}: {row.policy or 'no policy'} on CPU {row.cpus}{tree}: {health.text}"
    longest = f", the longest for {human_ns(row.longest_wait_ns)}" if row.waiting else ""
    yield f"  {counted(row.tasks, 'task')}: {row.running} run, {row.waiting} wait{longest}"
    if row.agent is not None and row.agent.state != "gone":
        yield f"  agent: {row.agent.state}, task {row.agent.tid}; {counted(row.agent.committed, 'decision')}"
    if row.departures:
        yield f"  {counted(row.departures, 'task')} left the ext class"
    if health.remedy:
        yield f"  try: sudo {health.remedy}"
