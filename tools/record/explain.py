# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf explain``: why a task waited."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ..output import human_ns, json_option, printable
from . import waits
from .reader import Recording, read
from .timeline import Task, Timeline
from .waits import AGENT, KERNEL, POLICY, Culprit, Explanation

_WIDTH = 79
#: Culprits that text shows.
_SHOWN = 4

_EPILOG = """\b
Examples:
  sudo ghostbpf record -o trace -d 5           make a recording
  ghostbpf explain trace --task 4711           its 10 longest waits
  ghostbpf explain trace --task 4711 --longest 1 --json

\b
Fields of --json, a line for each wait, then one with "type": "summary":
  at_ns, ns           when it began, by CLOCK_BOOTTIME, and how long
  why, queue          why it began, and the DSQ where the task waited
  depth               of that queue, with the task
  allowed, cpu        where it might have run, and where it ran
  culprits            what ran there instead, with ns
  idle_ns             time in which one of these CPUs idled
  decided_by          kernel, policy or agent; "decision" says it in words

\b
Exit status: 0 if the task is in the recording, even if it never waited; 1
if it is not, or the file cannot be read; 2 if the command line is wrong.
"""


@click.command(epilog=_EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--task", "tid", type=click.IntRange(1), required=True, metavar="PID", help="The task (thread) to explain."
)
@click.option(
    "--longest",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="N",
    help="Show the N longest waits, in the order of time.",
)
@json_option
def command(file: Path, tid: int, longest: int, as_json: bool) -> None:
    """Say why a task waited for a CPU, from a recording.

    Shows each wait with its reason, what ran instead on the CPUs that the task was allowed, and who decided: the
    kernel, a policy in BPF, or an agent by a transaction. PID is a number of the initial pid namespace.
    """
    recording = read(file)
    timeline = Timeline(recording.events)
    warn_incomplete(recording, timeline)
    task = timeline.tasks.get(tid)
    if task is None:
        raise GhostError(f"task {tid} is not in {file}", hint=_nearby(timeline))
    explanations = waits.explain(timeline, task)
    chosen = sorted(explanations, key=lambda one: -one.wait.ns)[:longest]
    chosen.sort(key=lambda one: one.wait.since)
    if as_json:
        for one in chosen:
            click.echo(json.dumps(_object(timeline, one)))
        click.echo(json.dumps(_summary(timeline, task, explanations)))
        return
    for number, one in enumerate(chosen, 1):
        click.echo("\n".join(_lines(timeline, number, one)) + "\n")
    click.echo(_summary_text(timeline, task, explanations, len(chosen)))


def warn_incomplete(recording: Recording, timeline: Timeline) -> None:
    """Say on stderr that a recording is not whole."""
    if recording.cut_off:
        seconds = timeline.ns / 1e9
        click.echo(
            f"warning: {recording.path} is cut off: it has the first {seconds:.3f} s\n"
            "  try: end ghostbpf record by Ctrl-C or SIGTERM; a full disk cuts a recording off, too",
            err=True,
        )
    if timeline.lost:
        click.echo(
            f"warning: {timeline.lost} events of {recording.path} were lost: waits next to them may be wrong\n"
            "  try: record for a shorter time, or on a machine with less load",
            err=True,
        )


def _nearby(timeline: Timeline) -> str:
    busy = sorted(timeline.tasks.values(), key=lambda task: -sum(wait.ns for wait in task.waits))[:3]
    return "a task that waited: " + ", ".join(printable(task.name) for task in busy) if busy else "record for longer"


def _object(timeline: Timeline, one: Explanation) -> dict[str, Any]:
    wait = one.wait
    return {
        "type": "wait",
        "at_ns": wait.since,
        "ns": wait.ns,
        "why": wait.queued.why,
        "why_text": one.why,
        "queue": f"{wait.queued.queue:#x}" if wait.queued.queue else None,
        "depth": wait.queued.depth,
        "enclave": wait.queued.enclave,
        "allowed": str(CpuSet.from_bits(one.allowed)),
        "cpu": wait.cpu,
        "culprits": [{"tid": c.task.tid, "comm": c.task.comm, "ns": c.ns} for c in one.culprits],
        "idle_ns": one.idle_ns,
        "decided_by": one.decided_by,
        "decision": one.decision,
    }


def _summary(timeline: Timeline, task: Task, explanations: list[Explanation]) -> dict[str, Any]:
    return {
        "type": "summary",
        "tid": task.tid,
        "comm": task.comm,
        "seconds": timeline.ns / 1e9,
        "waits": len(explanations),
        "waited_ns": sum(one.wait.ns for one in explanations),
        "longest_ns": max((one.wait.ns for one in explanations), default=0),
        "ran_ns": sum(run.ns for run in task.runs),
        "idle_ns": sum(one.idle_ns for one in explanations),
        "decided_by": {who: sum(one.decided_by == who for one in explanations) for who in (KERNEL, POLICY, AGENT)},
        "lost": timeline.lost,
    }


def _lines(timeline: Timeline, number: int, one: Explanation) -> list[str]:
    wait = one.wait
    at = (wait.since - timeline.since) / 1e9
    lines = [f"{number}. {human_ns(wait.ns)} at {at:.6f} s: {one.why}"]
    if one.where:
        lines.append(f"   waited on {one.where} (depth {wait.queued.depth})")
    allowed = str(CpuSet.from_bits(one.allowed)) or "none that ran"
    if one.culprits:
        shown = ", ".join(_culprit(culprit) for culprit in one.culprits[:_SHOWN])
        more = len(one.culprits) - _SHOWN
        lines.append(f"   ran instead on CPU {allowed}: {shown}" + (f", and {more} more" if more > 0 else ""))
    else:
        lines.append(f"   nothing ran instead on CPU {allowed}")
    if one.idle_ns:
        lines.append(f"   an allowed CPU idled for {human_ns(one.idle_ns)} of it")
    lines.append(f"   decided by {one.decision}")
    return [part for line in lines for part in textwrap.wrap(printable(line), _WIDTH, subsequent_indent="     ")]


def _culprit(culprit: Culprit) -> str:
    return f"{culprit.task.name} {human_ns(culprit.ns)}"


def _summary_text(timeline: Timeline, task: Task, explanations: list[Explanation], shown: int) -> str:
    s = _summary(timeline, task, explanations)
    if not explanations:
        return printable(f"{task.name} never waited in {s['seconds']:.3f} s; it ran for {human_ns(s['ran_ns'])}")
    deciders = ", ".join(f"{who} {count}" for who, count in s["decided_by"].items() if count)
    text = (
        f"{task.name} waited {s['waits']} times, {human_ns(s['waited_ns'])} in all, of {s['seconds']:.3f} s; the "
        f"longest {human_ns(s['longest_ns'])}, {shown} shown. It ran for {human_ns(s['ran_ns'])}. "
        f"Decided by: {deciders}."
    )
    return "\n".join(textwrap.wrap(printable(text), _WIDTH))
