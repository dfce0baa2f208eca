# SPDX-License-Identifier: Apache-2.0
"""``make bench-exact``: schedulers in instructions, whatever else the host runs.

In a guest (--cpus 2) that counts instructions (`ghostbpf vm --exact`), perf's
pipe and messaging run under EEVDF, under every policy, and under the scheduler
of each --with. A policy with agents runs with its fast path and without.
"biff+lending" is Biff in an enclave that lends and borrows, "biff+limits" with
a cpu.max that is never reached, "biff+limits2" with one for each of pipe's
two tasks, "biff+tree" in a leaf of a tree, and
"biff-stats" runs without the core's statistics. The
figures are instructions of all CPUs per operation, per call of each BPF
program, and per decision and message of an agent; "transactions" measures
Agent.commit, and "tracers" what each tracer adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..loaders.errors import GhostError
from ..tools.output import with_remedy
from ..vm.errors import KILLED_BY_EMULATION
from .exact_measure import FAST_PATH_OFF, measure, names
from .exact_report import Figure, grown, least, read_baseline, tables
from .naming import named_command

_GHOSTBPF = (sys.executable, "-m", "ghostbpf.tools.cli")
_EXAMPLES = """\
examples:
  make bench-exact
  make bench-exact ARGS="--json" >before.jsonl
  make bench-exact ARGS="--baseline before.jsonl"
  make bench-exact ARGS="--baseline before.jsonl --limit 10 biff"
  make bench-exact ARGS="EEVDF biff sol"
  make bench-exact ARGS="--tasks 10000 fifo_centralized"
  make bench-exact ARGS="--share /opt/scx --with 'fifo=/opt/scx/scx_simple -f'"

exit status: 0; 1 if a scheduler did not start, did not attach, was ejected, or
left a scheduler behind (stderr names it, and the others are measured), or if a
figure is above its --limit twice; 2 for a wrong command line; or that of
`ghostbpf vm` if the guest failed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Boot the guest and print what is measured in it; with the internal option ``--here``, measure."""
    arguments = _parse(argv)
    if arguments.here:
        return measure(arguments.schedulers, arguments.others, arguments.tasks)
    try:
        baseline = read_baseline(arguments.baseline) if arguments.baseline else None
    except GhostError as error:
        print(with_remedy(f"error: {error}", error.hint), file=sys.stderr)
        return 2
    status, figures = _in_guest(arguments)
    if arguments.json:
        for figure in figures:
            print(json.dumps(figure.as_row(baseline)))
    elif figures:
        print(tables(figures, baseline), end="")
    if arguments.limit is not None and baseline is not None:
        if grown(figures, baseline, arguments.limit):
            # Two tasks may wake each other in another way in each run, which is not what a change of code costs.
            print("above --limit: measuring once more, the lesser value counts", file=sys.stderr, flush=True)
            status, again = _in_guest(arguments)
            figures = least(figures, again)
        for line in (above := grown(figures, baseline, arguments.limit)):
            print(f"error: {line}", file=sys.stderr)
        status = status or int(bool(above))
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; without any name, ``schedulers`` is all of names(). ``others`` has words by name."""
    parser = argparse.ArgumentParser(
        prog="bench_exact", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = names()
    parser.add_argument("schedulers", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument(
        "--with",
        dest="commands",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="also measure the sched_ext scheduler that COMMAND attaches until it gets SIGINT",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="add the change of each figure since FILE, printed with --json"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="PERCENT",
        help="with --baseline: fail if a number of instructions has grown by more, in each of two runs",
    )
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="the guest's CPUs (default: 2)")
    parser.add_argument(
        "--tasks", type=int, default=0, metavar="N", help="tasks that sleep in each policy's enclave (default: 0)"
    )
    parser.add_argument("--kernel", default="newest", metavar="SPEC", help="the guest's kernel, as for ghostbpf vm")
    parser.add_argument("--share", metavar="DIR", help="the directory that the guest sees (default: the checkout)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    for name in arguments.schedulers:
        if name not in known:
            parser.error(f"there is no {name!r} to measure\n  try: {', '.join(known)}")
    if arguments.tasks < 0:
        parser.error(f"--tasks {arguments.tasks}: a number of tasks is not negative")
    if arguments.limit is not None and not arguments.baseline:
        parser.error("--limit compares with --baseline FILE, which is missing")
    arguments.schedulers = arguments.schedulers or known
    arguments.others = {}
    for text in arguments.commands:
        name, words = _named_command(parser, text)
        if name in arguments.others or name.removesuffix(FAST_PATH_OFF) in known:
            parser.error(f"--with {text!r}: the name {name!r} is taken")
        arguments.others[name] = words
    return arguments


def _named_command(parser: argparse.ArgumentParser, text: str) -> tuple[str, list[str]]:
    try:
        return named_command(text)
    except ValueError as error:
        parser.error(f"--with {error}\n  try: --with 'fifo=/opt/scx/scx_simple -f'")


def _in_guest(arguments: argparse.Namespace) -> tuple[int, list[Figure]]:
    """The guest's status and what was measured; again if QEMU kills the guest."""
    share = ["--share", arguments.share] if arguments.share else []
    commands = [word for text in arguments.commands for word in ("--with", text)]
    guest = [*_GHOSTBPF, "vm", "--exact", "--cpus", str(arguments.cpus), "--kernel", arguments.kernel, *share, "--"]
    here = ["--here", "--tasks", str(arguments.tasks), *commands, *arguments.schedulers]
    bench = ["python3", "-m", "ghostbpf.experiments.bench_exact", *here]
    while True:
        done = subprocess.run([*guest, *bench], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != KILLED_BY_EMULATION:
            complete = done.stdout[: done.stdout.rfind("\n") + 1]  # a guest that dies may cut a line
            return done.returncode, [Figure.from_json(line) for line in complete.splitlines()]
        print("QEMU killed the guest: all is measured again in a new guest", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
