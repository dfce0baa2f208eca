# SPDX-License-Identifier: Apache-2.0
"""Time off the CPU by stack; see bpf/tracers/offcputime.bpf.c."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

from .report import Section, Stack, Stacks
from .symbols import Symbols
from .tool import Tool
from .tracer import Tracer, comm

_STATES = {"interruptible": 1, "uninterruptible": 2, "any": 0}
_MISSING = "[missed]"

#: What a kernel stack begins with because a BPF program on a tracepoint takes it: three frames, or fewer.
_OWN_FRAMES = 3
_OWN = re.compile(r"bpf_prog_|bpf_trace_run|__bpf_trace_|__traceiter_")

#: A process, its name, and the numbers of its two stacks.
_Key = tuple[int, str, int, int]


class TOOL(Tool):
    """Where tasks leave the CPU, to sleep or because they are preempted, and for how long: a stack, innermost frame
    first, then the task and the microseconds under it. Only what ends while it is traced is counted.
    """

    NAME = "offcputime"
    SUMMARY = "Where tasks leave the CPU and for how long, by stack."
    TRACES = "off-CPU time by stack"
    BREAKS_DOWN = False
    PLOTS = False
    EXAMPLES = """\b
Examples:
  {name} --folded -d 10 > out.folded      for flamegraph.pl
  {name} --state uninterruptible -m 1000  what waits for disks, over 1 ms

"""
    OPTIONS = (
        click.Option(["-U", "--user-stacks-only", "user_only"], is_flag=True, help="No kernel frames."),
        click.Option(["-K", "--kernel-stacks-only", "kernel_only"], is_flag=True, help="No user frames."),
        click.Option(["--folded"], is_flag=True, help="One line a stack, for flame graphs."),
        click.Option(
            ["--state"], type=click.Choice(list(_STATES)), default="any", show_default=True, help="How it slept."
        ),
        click.Option(["-m", "--min-block-time", "min_us"], type=click.IntRange(0), default=1, metavar="USECS"),
        click.Option(["-M", "--max-block-time", "max_us"], type=click.IntRange(1), metavar="USECS"),
        click.Option(
            ["--stack-storage-size", "stacks"],
            type=click.IntRange(1),
            default=16_384,
            show_default=True,
            help="How many different stacks to keep.",
        ),
    )

    def make(self) -> Tracer:
        options = self.request.options
        most = options["max_us"]
        if options["user_only"] and options["kernel_only"]:
            raise click.UsageError("-U and -K exclude each other")
        if most is not None and most < options["min_us"]:
            raise click.UsageError(f"-m {options['min_us']} is more than -M {most}")
        constants = {
            "user_only": int(options["user_only"]),
            "kernel_only": int(options["kernel_only"]),
            "state": _STATES[options["state"]],
            "min_ns": options["min_us"] * 1000,
            "max_ns": (1 << 63) if most is None else most * 1000,
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
            # The kernel adds to the time first: what is not counted yet is for the next report.
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
        for number, look_up, wanted in (
            (kernel, self._symbols.kernel, not self.request.options["user_only"]),
            (user, lambda address: self._symbols.user(tgid, address), not self.request.options["kernel_only"]),
        ):
            if wanted and number >= 0:
                found = stacks.get(number)
                yield from _without_own([look_up(address) for address in (found.address if found else ()) if address])
            elif wanted and number not in (-14, -1):  # EFAULT: there is none, as with kernel threads
                yield _MISSING


def _without_own(frames: list[str]) -> list[str]:
    own = [index for index, frame in enumerate(frames[:_OWN_FRAMES]) if _OWN.match(frame)]
    return frames[own[-1] + 1 :] if own else frames
