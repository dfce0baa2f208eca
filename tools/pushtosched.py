# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf pushtosched``: move tasks, listed on standard input, between scheduling classes and enclaves."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import click

from ..schedulers.classes import Pusher, SchedulingClass
from ..schedulers.enclave import Enclaves
from ..schedulers.errors import TaskError
from ..schedulers.tasks import policy_of
from .caveats import Caveats
from .output import json_option, printable

_EXAMPLES = """\b
Examples:
  ls /proc/4711/task | sudo ghostbpf pushtosched ext --enclave 1
  ps -L -o lwp= -C nginx | sudo ghostbpf pushtosched ext --enclave 1
  pgrep -w nginx | sudo ghostbpf pushtosched other     and back again
  echo 4711 4712 | sudo ghostbpf pushtosched fifo:10 --json
\b
CLASS is ext, other, batch, idle, fifo:PRIO or rr:PRIO.
"""


@dataclass(frozen=True)
class _Result:
    """The result for one word of the input: moved, there (already), died, failed; ``tid`` is None if it is no TID."""

    tid: int | None
    result: str
    before: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.result == "failed":
            return f"failed: {self.error}"
        words = {"moved": f"moved from {self.before}", "there": "there already", "died": "died meanwhile"}
        return f"{self.tid}: {words[self.result]}"


@click.command(epilog=_EXAMPLES)
@click.argument("target", metavar="CLASS")
@click.option("--enclave", "id", type=int, metavar="ID", help="The enclave to move them into, for ext.")
@json_option
def command(target: str, id: int | None, as_json: bool) -> int:
    """Move tasks to a scheduling class; their TIDs are read from standard input.

    Each TID is one thread, moved when its line is read. A task that has ended is not a failure. The exit status is 1
    if a task could not be moved, or a word was not a TID.
    """
    pusher = _pusher(target, id)
    caveats = None if pusher.enclave is None else Caveats(pusher.enclave)
    counts: Counter[str] = Counter()
    for result in _push_all(pusher):
        counts[result.result] += 1
        text = json.dumps(vars(result)) if as_json else printable(str(result))
        click.echo(text, err=result.result == "failed" and not as_json)
        if caveats is not None and result.tid is not None and result.result == "moved":
            caveats.joined([result.tid])
    if not as_json:
        click.echo(", ".join(f"{counts[kind]} {kind}" for kind in ("moved", "there", "died", "failed")), err=True)
    return int(counts["failed"] > 0)


def _pusher(target: str, id: int | None) -> Pusher:
    try:
        scheduling_class = SchedulingClass.parse(target)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="CLASS") from None
    if (scheduling_class.name == "ext") != (id is not None):
        raise click.UsageError("ext takes an --enclave ID" if id is None else "--enclave is for ext")
    return Pusher(scheduling_class, None if id is None else Enclaves.find(id))


def _push_all(pusher: Pusher) -> Iterator[_Result]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        for word in line.decode(errors="backslashreplace").split():
            if word.isascii() and word.isdecimal() and 0 < int(word) < 1 << 31:
                yield _push(pusher, int(word))
            else:
                yield _Result(None, "failed", error=f'line {number}: "{word}" is no TID')


def _push(pusher: Pusher, tid: int) -> _Result:
    before = SchedulingClass.of(tid)
    try:
        return _Result(tid, "moved" if pusher.push(tid) else "there", str(before))
    except TaskError as error:
        if policy_of(tid) is None:
            return _Result(tid, "died")
        return _Result(tid, "failed", str(before), f"{error}" + (f"; {error.hint}" if error.hint else ""))
