# SPDX-License-Identifier: Apache-2.0
"""Missed events: a tracer makes no wrong time of the events that it has seen, and counts each lost one.

The events are real: a program of the tracer is detached while they happen.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
import pytest
from ghostbpf.experiments.wakelat import WakeLatency
from ghostbpf.loaders import Array, Link, Target
from ghostbpf.tools.trace.command import command, load
from ghostbpf.tools.trace.filters import Filters
from ghostbpf.tools.trace.loop import Output, Printer
from ghostbpf.tools.trace.report import HistogramSection
from ghostbpf.tools.trace.tool import Request, Tool
from ghostbpf.tools.trace.tracer import Missed, ffi
from tracing import Task, is_asleep, objects, run_together, spin, tracing, wait_until

pytestmark = pytest.mark.usefixtures("bcc")

SWITCH, WAKEUP = "tp_sched_switch", "tp_sched_wakeup"
#: Seconds of a sleep that must not be counted as a wait.
SLEEP = 0.3


def make(name: str, *arguments: object, tid: int) -> Tool:
    """The tool as its command line makes it."""
    made = command.get_command(click.Context(command), name)
    assert made is not None
    with made.make_context(name, list(map(str, arguments))) as context:
        options = context.params
    return load(name)(Request(Filters(tid=tid), options=options))


@contextlib.contextmanager
def missing(tool: Tool, *functions: str) -> Iterator[None]:
    """Detach the tool's programs of these names, if it has them, during the block."""
    detached = [function for function in functions if function in tool.tracer.links]
    for function in detached:
        tool.tracer.links[function].close()
    yield
    for function in detached:
        tool.tracer.attach(function)


class Holder:
    """A task that sleeps until switch_in(), and then spins until switch_out()."""

    def __init__(self, task: Callable[..., Task], cpu: int) -> None:
        self._inlet, self._outlet = os.pipe()
        os.set_blocking(self._inlet, False)
        self.task = task(self._spin, cpu=cpu)
        self.pid = self.task.pid

    def _spin(self) -> None:
        while True:
            with contextlib.suppress(BlockingIOError):
                if os.read(self._inlet, 1):
                    return

    def switch_in(self) -> None:
        """Wake it, and wait until it has the CPU."""
        runs = self.task.figures().runs
        self.task.start()
        wait_until(lambda: self.task.figures().runs > runs and not is_asleep(self.pid), f"{self.pid} runs")

    def switch_out(self) -> None:
        """Let it sleep."""
        os.write(self._outlet, b"!")
        self.task.finish()

    def close(self) -> None:
        """Close its pipe."""
        os.close(self._inlet)
        os.close(self._outlet)

    def turn(self) -> None:
        """Let it run once, and sleep again."""
        self.switch_in()
        self.switch_out()


@pytest.fixture
def pair(task: Callable[..., Task], cpus: list[int]) -> Iterator[list[Holder]]:
    """Two holders on one CPU, which the test process does not use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpus[0]})
    held = [Holder(task, cpus[-1]) for _ in range(2)]
    for holder in held:
        holder.turn()
    yield held
    os.sched_setaffinity(0, before)
    for holder in held:
        holder.close()


@pytest.fixture
def holder(pair: list[Holder]) -> Holder:
    return pair[0]


@dataclass(frozen=True)
class Seen:
    """The counts of a tool between two reads."""

    count: int
    seconds: float
    missed: Missed

    @property
    def runs(self) -> int:
        """The runs that the tool knows of: the kernel may hide any switch from it."""
        return self.count + sum(self.missed)


class Reader:
    """Reads a tool's counts again and again."""

    def __init__(self, tool: Tool) -> None:
        self._tool, self._before = tool, Missed()

    def __call__(self) -> Seen:
        """The counts since the previous read."""
        sections = list(self._tool.report(1.0))
        histograms = [s.histogram for s in sections if isinstance(s, HistogramSection) and s.name != "all"]
        now, before = self._tool.tracer.missed(), self._before
        self._before = now
        return Seen(
            sum(h.count for h in histograms),
            sum(h.count * h.summary()["avg"] for h in histograms) / 1e6,
            Missed(now.unended - before.unended, now.unannounced - before.unannounced),
        )


def miss_end(tool: Tool, holder: Holder) -> None:
    """The tool sees the wakeup, but not the switch in."""
    with missing(tool, SWITCH):
        holder.switch_in()
    holder.switch_out()


def miss_run(tool: Tool, holder: Holder) -> None:
    """The tool sees the wakeup, but neither the switch in nor the switch out."""
    with missing(tool, SWITCH):
        holder.turn()


def miss_sleep(tool: Tool, holder: Holder) -> None:
    """The tool sees the switch in, but not the switch out."""
    holder.switch_in()
    with missing(tool, SWITCH):
        holder.switch_out()


def miss_wakeup(tool: Tool, holder: Holder) -> None:
    """The tool sees the switch in, but not the wakeup."""
    with missing(tool, WAKEUP):
        holder.turn()


def miss_all(tool: Tool, holder: Holder) -> None:
    """The tool sees no event of one turn."""
    with missing(tool, WAKEUP, SWITCH):
        holder.turn()


def miss_all_but_the_first(tool: Tool, holder: Holder) -> None:
    """The tool sees the wakeup, and then only the switch in of the next run."""
    with missing(tool, SWITCH):
        holder.turn()
    with missing(tool, WAKEUP):
        time.sleep(SLEEP)
        holder.turn()


MISSES = [miss_end, miss_run, miss_sleep, miss_wakeup, miss_all, miss_all_but_the_first]
each_miss = pytest.mark.parametrize("miss", MISSES, ids=lambda miss: miss.__name__)
Miss = Callable[[Tool, Holder], None]


@pytest.mark.parametrize("name", ["runqlat", "schedlat"])
@each_miss
def test_no_sleep_is_a_wait_whatever_event_was_missed(holder: Holder, name: str, miss: Miss) -> None:
    with make(name, tid=holder.pid) as tool:
        read = Reader(tool)
        holder.turn()
        assert read().runs > 0
        before = holder.task.figures()
        miss(tool, holder)
        time.sleep(SLEEP)
        holder.turn()
        seen, kernel_count = read(), holder.task.figures() - before
    unended, unannounced = {
        miss_end: (1, 0),
        miss_run: (1, 0),
        miss_sleep: (0, 0),
        miss_wakeup: (0, 1),
        miss_all: (0, 1),
        miss_all_but_the_first: (1, 1),
    }[miss]
    # A task that was preempted in the gap may switch in a second time behind it: the tool sees that one.
    assert seen.missed.unended >= unended or kernel_count.preempted
    assert seen.missed.unannounced >= unannounced or kernel_count.preempted
    # Each switch in is counted or missed; the kernel has their number.
    assert seen.runs == kernel_count.runs
    assert seen.seconds <= kernel_count.waited + 0.002 * kernel_count.runs + kernel_count.slack


@pytest.mark.parametrize("name", ["cpudist", "cpudist -O", "schedrun"])
@each_miss
def test_missed_event_charges_no_run_to_another_task_and_joins_no_two_times_off_cpu(
    holder: Holder, name: str, miss: Miss
) -> None:
    tool_name, *options = name.split()
    with make(tool_name, *options, tid=holder.pid) as tool:
        read = Reader(tool)
        holder.turn()
        started = time.monotonic()
        holder.turn()
        assert read().runs > 0
        before = holder.task.figures()
        miss(tool, holder)
        holder.turn()
        seen, kernel = read(), holder.task.figures() - before
        took = time.monotonic() - started
    if options:
        assert seen.runs == kernel.runs
        assert seen.seconds <= took - kernel.ran + 0.002 * kernel.runs
    else:
        # A run without any seen event is unknown: the tool counts by CPU.
        assert seen.runs <= kernel.runs
        if miss is miss_sleep:
            assert seen.missed.unended or kernel.preempted
        assert seen.seconds <= kernel.ran + kernel.slack + 0.002 * kernel.runs


@each_miss
def test_only_whole_windows_are_fair_or_not(holder: Holder, miss: Miss) -> None:
    with make("schedfair", tid=holder.pid) as tool:
        read = Reader(tool)
        holder.turn()
        before = holder.task.figures()
        miss(tool, holder)
        holder.turn()
        windows, *_ = tool.report(1.0)
        seen, kernel = read(), holder.task.figures() - before
    assert sum(row["count"] for row in windows.rows) + sum(seen.missed) >= kernel.blocked
    assert any(seen.missed) or miss is miss_wakeup or kernel.preempted


@each_miss
def test_runqslower_reports_no_sleep_as_a_wait(holder: Holder, miss: Miss) -> None:
    with make("runqslower", "--min", int(SLEEP * 5e5), tid=holder.pid) as tool:
        before = holder.task.figures()
        holder.turn()
        miss(tool, holder)
        time.sleep(SLEEP)
        holder.turn()
        kernel = holder.task.figures() - before
        waits = [row["usecs"] for section in tool.report(1.0) for row in section.json()]
    assert sum(waits) <= 1e6 * (kernel.waited + kernel.slack) + 2000 * kernel.runs


def hand_over_unseen(tool: Tool, first: Holder, second: Holder, waiter: Task | None = None) -> None:
    """The first task runs for long; of the second, which follows it, the tool sees only the switch out.

    The waiter is the third. All are in one class: the kernel lets the fair class run beside a busy real-time class.
    """
    for pid in (first.pid, second.pid, *([] if waiter is None else [waiter.pid])):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    first.switch_in()
    second.task.start()
    if waiter is not None:
        waiter.start()
    time.sleep(SLEEP)
    with missing(tool, SWITCH):
        runs = second.task.figures().runs
        first.switch_out()
        wait_until(lambda: second.task.figures().runs > runs, f"{second.pid} runs")
    second.switch_out()


@pytest.mark.parametrize("name", ["cpudist", "schedrun"])
def test_task_is_not_charged_for_a_run_of_the_task_before_it(pair: list[Holder], name: str) -> None:
    with make(name, tid=pair[1].pid) as tool:
        before = pair[1].task.figures()
        hand_over_unseen(tool, *pair)
        pair[0].turn()
        seen, kernel = Reader(tool)(), pair[1].task.figures() - before
    assert any(seen.missed) or kernel.preempted
    assert seen.seconds <= kernel.ran + kernel.slack + 0.002 * kernel.runs


def test_culprit_is_not_blamed_for_a_run_of_the_task_before_it(
    task: Callable[..., Task], cpus: list[int], pair: list[Holder]
) -> None:
    waiter = task(lambda: None, cpu=cpus[-1])
    with make("runqslower", "--min", "1", "-n", "16", tid=waiter.pid) as tool:
        before = pair[1].task.figures()
        pair[0].turn()
        hand_over_unseen(tool, *pair, waiter)
        waiter.finish()
        kernel = pair[1].task.figures() - before
        rows = [row for section in tool.report(1.0) for row in section.json()]
    assert max(row["usecs"] for row in rows) >= 1e6 * SLEEP
    blamed = [c["usecs"] for row in rows for c in row["culprits"] if c["tid"] == pair[1].pid]
    assert sum(blamed) <= 1e6 * (kernel.ran + kernel.slack) + 2000 * kernel.runs


def test_waits_and_missed_times_add_up_to_the_kernels_count(
    task: Callable[..., Task], cpus: list[int], rng: Random
) -> None:
    def work() -> None:
        for _ in range(300):
            spin(0.0005)
            time.sleep(0.0005)

    pair = [task(work, cpu=cpus[-1]) for _ in range(2)]
    with make("runqlat", tid=pair[0].pid) as tool:
        read = Reader(tool)
        run_together(pair)
        read()
        before = pair[0].figures()
        for one in pair:
            one.start()
        while (pair[0].figures() - before).blocked < 250:
            with missing(tool, *rng.sample([SWITCH, WAKEUP], rng.randint(1, 2))):
                time.sleep(rng.random() * 0.005)
            time.sleep(rng.random() * 0.005)
        for one in pair:
            one.finish()
        pair[0].run()
        seen, kernel = read(), pair[0].figures() - before
    assert seen.missed.unended > 0
    assert seen.missed.unannounced > 0
    assert seen.count > 0
    assert seen.runs == kernel.runs
    assert seen.seconds <= 1.05 * kernel.waited + 0.0001 * kernel.runs + kernel.slack


def test_missed_times_are_printed_beside_the_drops(holder: Holder, capsys: pytest.CaptureFixture[str]) -> None:
    with make("runqlat", tid=holder.pid) as tool:
        holder.turn()
        miss_all_but_the_first(tool, holder)
        unended, unannounced = missed = tool.tracer.missed()
        Printer(tool, Output(as_json=True)).end(1.0, tool.tracer.drops(), missed)
    out, err = capsys.readouterr()
    [end] = objects(out)
    assert (end["unended"], end["unannounced"]) == (unended, unannounced)
    assert f"{unended} times without an end (unended) and {unannounced} without a start" in err


def test_filter_that_matches_no_more_misses_nothing(task: Callable[..., Task]) -> None:
    def work() -> None:
        for name in ("other", "named"):
            for _ in range(5):
                time.sleep(0.001)
            Path("/proc/self/comm").write_text(name)
            time.sleep(0.001)

    worker = task(work, name="named")
    with tracing("runqlat", "-c", "named") as traced:
        before = worker.figures()
        for _ in range(3):
            worker.run()
        kernel = worker.figures() - before
    assert traced.count() > 0
    # Each hidden switch is an event that was missed.
    assert traced.missed <= kernel.hidden


def test_sleeping_task_waits_in_no_queue_although_its_switch_in_was_missed(holder: Holder) -> None:
    # In this class it is not preempted.
    os.sched_setscheduler(holder.pid, os.SCHED_FIFO, os.sched_param(1))
    with make("runqlen", tid=holder.pid) as tool:
        with missing(tool, "filtered_sched_switch"):
            holder.switch_in()
        holder.switch_out()
        queues = Array(tool.tracer.map("queues"), ffi(), "u64")
        assert set(queues.values()) == {0}


def test_wake_latency_of_the_benchmarks_counts_no_sleep_as_a_wait(holder: Holder) -> None:
    with WakeLatency() as latency:
        latency.mark(holder.pid)
        before = holder.task.figures()
        *_, wakeup, _, switch = latency._links
        switch.close()
        holder.turn()
        wakeup.close()
        latency._links.append(
            Link.tracepoint(latency._module.load("wakelat_switch", Target.tracepoint("sched_switch")))
        )
        time.sleep(SLEEP)
        holder.turn()
        kernel = holder.task.figures() - before
        seen = latency.read()
    assert seen.switches > 0
    assert seen.longest <= 1e9 * (kernel.waited + kernel.slack) + 2e6
