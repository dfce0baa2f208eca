# SPDX-License-Identifier: Apache-2.0
"""Time off the CPU by stack; see bpf/tracers/offcputime.bpf.c."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator

import click

from .report import Section, Stack, Stacks
from .symbols import Symbols
from .tool import Tool
from .tracer import Tracer, comm

_STATES = {"interruptible": 1, "uninterruptible": 2, "any": 0}
_MISSING = "[missed]"

#: A kernel stack begins with up to three frames of the tracepoint that takes it.
_OWN_FRAMES = 3
_OWN = re.compile(r"bpf_prog_|bpf_trace_run|__bpf_trace_|__traceiter_")

#: A process, its name, and the ids of its kernel and user stacks.
_Key = tuple[int, str, int, int]


class TOOL(Tool):
    """Where tasks leave the CPU, to sleep or when preempted, and for how long: each stack, innermost frame first, then
    the task and its microseconds off the CPU. A time counts when it ends, during the trace.
    """

    NAME = "offcputime"
    TRACES = "off-CPU time by stack"
    BREAKS_DOWN = False
    PLOTS = False
    EXAMPLES = """\b
Examples:
  {name} --folded -d 10 > out.folded      for flamegraph.pl
  {name} --state uninterruptible -m 1000  waits for disks, 1 ms and more

"""
    OPTIONS = (
        click.Option(["-U", "--user-stacks-only", "user_only"], is_flag=True, help="Omit kernel frames."),
        click.Option(["-K", "--kernel-stacks-only", "kernel_only"], is_flag=True, help="Omit user frames."),
        click.Option(["--folded"], is_flag=True, help="One line for each stack, for flame graphs."),
        click.Option(
            ["--state"],
            type=click.Choice(list(_STATES)),
            default="any",
            show_default=True,
            help="The state of the task off the CPU.",
        ),
        click.Option(
            ["-m", "--min-block-time", "min_us"],
            type=click.IntRange(0),
            default=1,
            show_default=True,
            metavar="USECS",
            help="Omit shorter times.",
        ),
        click.Option(
            ["-M", "--max-block-time", "max_us"], type=click.IntRange(1), metavar="USECS", help="Omit longer times."
        ),
        click.Option(
            ["--stack-storage-size", "stacks"],
            type=click.IntRange(1),
            default=16_384,
            show_default=True,
            help="Number of distinct stacks to keep.",
        ),
    )

    def make(self) -> Tracer:
        options = self.request.options
        max_us = options["max_us"]
        if options["user_only"] and options["kernel_only"]:
            raise click.UsageError("-U and -K exclude each other")
        if max_us is not None and max_us < options["min_us"]:
            raise click.UsageError(f"-m {options['min_us']} is more than -M {max_us}")
        constants = {
            "user_only": int(options["user_only"]),
            "kernel_only": int(options["kernel_only"]),
            "state": _STATES[options["state"]],
            "min_ns": options["min_us"] * 1000,
            "max_ns": (1 << 63) if max_us is None else max_us * 1000,
        }
        return Tracer(
            self.NAME,
            self.request.filters,
            constants=constants,
            entries={"stacks": options["stacks"]},
            defines={"STACKS": 16_384},
            header="offcputime.h",
        )

    def begin(self) -> None:
        self._before: dict[_Key, tuple[int, int]] = {}
        self._symbols = self.tracer.keep(Symbols())

    def report(self, seconds: float) -> Iterable[Section]:
        now: dict[_Key, tuple[int, int]] = {}
        for key, time in self.tracer.hash("times", "struct off_key", "struct off_time").items():
            at = (key.tgid, comm(key.comm), key.kernel_stack, key.user_stack)
            ns, count = now.get(at, (0, 0))
            now[at] = ns + time.ns, count + time.count
        grown = []
        for at, (ns, count) in now.items():
            ns_before, count_before = self._before.get(at, (0, 0))
            # BPF adds the time before the count: if it is not counted yet, it belongs to the next report.
            if count > count_before:
                grown.append((ns - ns_before, count - count_before, at))
                self._before[at] = ns, count
        stacks = [
            Stack(tuple(self._frames(tgid, kernel, user)), name, tgid, ns // 1000, count)
            for ns, count, (tgid, name, kernel, user) in sorted(grown)
        ]
        yield Stacks("off_cpu", stacks, self.request.options["folded"])

    def _frames(self, tgid: int, kernel: int, user: int) -> Iterator[str]:
        stacks = self.tracer.hash("stacks", "u32", "struct stack")
        for number, look_up, shown in (
            (kernel, self._symbols.kernel, not self.request.options["user_only"]),
            (user, lambda address: self._symbols.user(tgid, address), not self.request.options["kernel_only"]),
        ):
            if shown and number >= 0:
                stack = stacks.get(number)
                yield from _without_own([look_up(address) for address in (stack.address if stack else ()) if address])
            elif shown and number not in (-errno.EFAULT, -1):  # EFAULT: no such stack, as of kernel threads
                yield _MISSING


def _without_own(frames: list[str]) -> list[str]:
    own = [index for index, frame in enumerate(frames[:_OWN_FRAMES]) if _OWN.match(frame)]
    return frames[own[-1] + 1 :] if own else frames
