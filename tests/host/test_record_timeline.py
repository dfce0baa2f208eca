# SPDX-License-Identifier: Apache-2.0
"""What is made of events: a known course is explained in words and compared in figures, and none breaks the rules."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ghostbpf.tools import cli
from ghostbpf.tools.record import compare, waits
from ghostbpf.tools.record.events import Event, Lost
from ghostbpf.tools.record.timeline import Timeline
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import AGENT, CC, EVENTS, KNOWN, LD, MAKE, MS, queued, switch, woken, write


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, from its arguments to its exit status."""
    argv, out, err = ["ghostbpf", *map(str, arguments)], io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return subprocess.CompletedProcess(argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("record") / "known", KNOWN)


def assert_in_order(spans: list[Any]) -> None:
    assert all(span.until >= span.since for span in spans)
    assert all(before.until <= after.since for before, after in pairwise(spans))


@settings(deadline=None, max_examples=50)
@given(st.lists(EVENTS, max_size=60))
def test_no_time_is_negative_and_no_states_overlap_whatever_happens(events: list[Event]) -> None:
    timeline = Timeline(events)
    assert timeline.ns >= 0
    for runs in timeline.runs.values():
        assert_in_order(runs)
    for task in timeline.tasks.values():
        states = sorted([*task.runs, *task.waits], key=lambda span: (span.since, span.until))
        assert_in_order(states)
        for one in waits.explain(timeline, task):
            assert 0 <= one.idle_ns <= one.wait.ns
            assert all(0 < culprit.ns <= one.wait.ns * len(timeline.runs) for culprit in one.culprits)
    assert 0 <= compare.not_conserved_ns(timeline) <= timeline.ns


#: Few tasks, CPUs and times, so that events meet.
_DENSE = st.one_of(
    st.builds(
        switch,
        st.integers(0, 12),
        st.integers(0, 1),
        st.sampled_from([0, MAKE, CC, LD]),
        st.sampled_from([0, MAKE, CC, LD]),
        st.sampled_from([0, 1, 0x100]),
    ),
    st.builds(
        queued,
        st.integers(0, 12),
        st.sampled_from([MAKE, CC, LD]),
        st.sampled_from(["woken", "made", "preempted", "yielded"]),
        st.sampled_from([0, MAKE, CC]),
        st.integers(0, 1),
    ),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(_DENSE, max_size=30))
def test_no_states_overlap_where_events_contradict_each_other(events: list[Event]) -> None:
    timeline = Timeline(events)
    for runs in timeline.runs.values():
        assert_in_order(runs)
    for task in timeline.tasks.values():
        assert_in_order(sorted([*task.runs, *task.waits], key=lambda span: (span.since, span.until)))
    assert 0 <= compare.not_conserved_ns(timeline) <= timeline.ns


def test_each_wait_is_explained_by_what_ran_and_who_decided() -> None:
    timeline = Timeline(KNOWN)
    policy, agent, preempted = waits.explain(timeline, timeline.tasks[CC])
    assert [one.wait.ns for one in (policy, agent, preempted)] == [20 * MS, 10 * MS, 5 * MS]
    assert [(culprit.task.tid, culprit.ns) for culprit in policy.culprits] == [(MAKE, 20 * MS), (LD, 15 * MS)]
    assert policy.idle_ns == 5 * MS
    assert (policy.why, policy.decided_by) == (f"woken by make ({MAKE})", waits.POLICY)
    assert policy.decision == "policy biff of enclave 1, in BPF: CPU 0"
    assert "PENDING" in policy.where
    assert agent.why == "woken by an interrupt or a timer"
    assert (agent.decided_by, agent.idle_ns, agent.culprits) == (waits.AGENT, 10 * MS, ())
    assert agent.decision == (
        f"agent agent ({AGENT}), on message TASK_WAKEUP number 7: CPU 1, "
        "6000 us after the wait began, 4000 us before it ended"
    )
    assert preempted.why == f"preempted by ld ({LD}): agent agent ({AGENT}) asked for it"


def test_a_higher_class_is_named_as_the_reason() -> None:
    events = [switch(0, 0, 0, CC), switch(5, 0, CC, LD, 0x100, prio=9), queued(5, CC, "preempted", LD, 0)]
    timeline = Timeline([*events, switch(9, 0, LD, CC)])
    [one] = waits.explain(timeline, timeline.tasks[CC])
    assert one.why == f"preempted by ld ({LD}), of a higher class"
    assert one.decided_by == waits.KERNEL


def test_a_wait_is_for_the_cpus_of_the_affinity_alone() -> None:
    events = [*woken(0, CC, MAKE, 0, allowed=0b01), switch(0, 0, 0, MAKE), switch(0, 1, 0, LD), switch(8, 1, LD, 0)]
    timeline = Timeline([*events, switch(10, 0, MAKE, CC)])
    [one] = waits.explain(timeline, timeline.tasks[CC])
    assert [culprit.task.tid for culprit in one.culprits] == [MAKE]
    assert one.idle_ns == 0
    assert compare.not_conserved_ns(timeline) == 0


def test_explain_tells_it_in_words_below_80_columns(known: Path) -> None:
    done = command("explain", known, "--task", CC)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) < 80
    text = " ".join(done.stdout.split())
    assert f"1. 20.0 ms at 0.009000 s: woken by make ({MAKE})" in text
    assert "ran instead on CPU 0-1: make (101) 20.0 ms, ld (103) 15.0 ms" in text
    assert "an allowed CPU idled for 5.0 ms of it" in text
    assert "cc1 (102) waited 3 times, 35.0 ms in all, of 0.099 s; the longest 20.0 ms, 3 shown." in text
    assert text.endswith("Decided by: policy 2, agent 1.")


def test_explain_as_json_has_the_longest_waits_and_a_summary(known: Path) -> None:
    done = command("explain", known, "--task", CC, "--longest", 1, "--json")
    wait, summary = map(json.loads, done.stdout.splitlines())
    assert (wait["type"], wait["ns"], wait["queue"], wait["allowed"]) == ("wait", 20 * MS, "0x10001", "0-1")
    assert wait["culprits"][0] == {"tid": MAKE, "comm": "make", "ns": 20 * MS}
    assert (summary["waits"], summary["waited_ns"], summary["ran_ns"]) == (3, 35 * MS, 53 * MS)
    assert summary["decided_by"] == {"kernel": 0, "policy": 2, "agent": 1}


def test_task_without_waits_and_unknown_task_are_told(known: Path) -> None:
    done = command("explain", known, "--task", MAKE)
    assert (done.returncode, done.stdout) == (0, "make (101) never waited in 0.099 s; it ran for 29.0 ms\n")
    done = command("explain", known, "--task", 999)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: task 999 is not in {known}\n  try: a task that waited: cc1 (102), ld (103), make (101)\n"
    )


def test_cut_off_and_lossy_recordings_are_told(known: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "trace", [*KNOWN, Lost(50 * MS, 4)])
    path.write_bytes(path.read_bytes()[:-5])
    done = command("explain", path, "--task", CC)
    assert done.returncode == 0
    assert f"warning: {path} is cut off" in done.stderr
    done = command("compare", known, write(tmp_path / "lossy", [*KNOWN, Lost(50 * MS, 4)]))
    assert "warning: 4 events of" in done.stderr
    done = command("compare", known, tmp_path / "none")
    assert done.returncode == 1
    assert "  try: make one: sudo ghostbpf record -o FILE" in done.stderr


def test_compare_has_the_known_figures_side_by_side(known: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other", [switch(0, 0, 0, CC), *woken(2, LD, CC, 0), switch(4, 0, CC, LD), switch(8, 0, LD, 0)]
    )
    done = command("compare", known, other, "--json")
    figures = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    latency = figures["wakeup latency, max"]
    assert (latency["a"], latency["b"], latency["ratio"]) == (20 * MS, 2 * MS, 0.1)
    assert figures["preemption wait, max"]["a"] == 5 * MS
    assert figures["preemption wait, max"]["ratio"] == 0
    # cc1 came from CPU 0 to CPU 1, in 99 ms.
    assert figures["migration rate"]["a"] == pytest.approx(1 / 0.099)
    assert figures["queue length, max"]["a"] == 1
    # ld waits from 55 ms on; cc1 for 35 ms, of which a CPU idled for 5 and 10 ms, and CPU 0 from 38 ms on.
    assert figures["not conserved"]["a"] == pytest.approx(100 * 25 / 99)
    assert figures["not conserved"]["b"] == 0
    done = command("compare", known, other)
    assert max(map(len, done.stdout.splitlines())) < 80
    assert "wakeup latency, max" in done.stdout


def test_percentiles_are_values_that_were_measured() -> None:
    assert compare.percentile([], 0.5) == 0
    assert [compare.percentile([1, 2, 3, 4], share) for share in (0.5, 0.75, 0.99, 1)] == [2, 3, 4, 4]
