# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf top`` without a screen: what it makes of samples, most of them recorded in a guest."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.core import Task, constant
from ghostbpf.schedulers.errors import Ejected
from ghostbpf.schedulers.snapshot import Snapshot
from ghostbpf.tools.top import changes, columns, questions
from ghostbpf.tools.top.columns import CPU_WIDTH, cpu_cell, cpu_lines, report, select_tasks, sort_tasks
from ghostbpf.tools.top.document import document
from ghostbpf.tools.top.drawing import bar, fit, sparkline, width_of
from ghostbpf.tools.top.frame import Frame, History, between
from ghostbpf.tools.top.health import core_lines, verdict
from ghostbpf.tools.top.sample import CpuTime, Sample, cpu_times
from hypothesis import given
from hypothesis import strategies as st
from top_recording import load

SCHEMA = json.loads((Path(columns.__file__).parent / "schema.json").read_text())


@pytest.fixture
def samples() -> list[Sample]:
    return load()


@pytest.fixture
def frame(samples: list[Sample]) -> Frame:
    return between(*samples)


def with_tasks(sample: Sample, *tasks: Task) -> Sample:
    return dataclasses.replace(sample, state=dataclasses.replace(sample.state, tasks=tasks))


def changed(task: Task, **activity: object) -> Task:
    return dataclasses.replace(task, activity=dataclasses.replace(task.activity, **activity))  # type: ignore[arg-type]


def test_shares_of_a_recorded_load_add_up(frame: Frame) -> None:
    for row in frame.enclaves:
        assert row.busy is not None
        tasks = [task for task in frame.tasks if task.enclave == row.id]
        assert sum(task.cpu_share or 0 for task in tasks) == pytest.approx(row.busy, abs=0.25)
        cpus = [cpu for cpu in frame.cpus if cpu.enclave == row.id]
        assert sum(cpu.ext or 0 for cpu in cpus) == pytest.approx(row.busy, abs=0.05)
        assert {cpu.cpu for cpu in cpus} == set(row.cpus)
        assert row.running == sum(cpu.state == "running" for cpu in cpus)
        assert row.waiting == sum(task.state == "waiting" for task in tasks)
        assert row.queued == row.waiting - sum(cpu.depth for cpu in cpus)
    for task in frame.tasks:
        # A task cannot run and wait for longer than there was time.
        assert (task.cpu_share or 0) + (task.wait_share or 0) < 1.1


def test_first_sample_has_no_rates_and_no_error(samples: list[Sample]) -> None:
    frame = between(None, samples[0])
    assert frame.seconds == 0
    assert {row.busy for row in frame.enclaves} == {row.cpu_share for row in frame.tasks} == {None}
    assert {row.busy for row in frame.cpus} == {row.ext for row in frame.cpus} == {None}


def test_number_that_another_task_had_begins_anew(samples: list[Sample]) -> None:
    before, now = samples
    task = now.state.tasks[0]
    fresh = changed(dataclasses.replace(task, runtime_ns=5), runs=0, waited_ns=0)
    row = between(before, with_tasks(now, fresh)).tasks[0]
    assert (row.cpu_share, row.wait_share, row.runtime_ns) == (None, None, 5)


def test_id_that_another_enclave_had_begins_anew(samples: list[Sample]) -> None:
    before, now = samples
    made = dataclasses.replace(now.state.enclaves[0], created_ns=now.state.enclaves[0].created_ns + 1)
    state = dataclasses.replace(now.state, enclaves=(made,))
    row = between(before, dataclasses.replace(now, state=state)).enclaves[0]
    assert (row.busy, row.switches) == (None, None)


def test_cpu_that_goes_offline_is_still_listed_if_an_enclave_owns_it(samples: list[Sample]) -> None:
    before, now = samples
    cpu = min(now.state.cpus)
    (row,) = (row for row in between(before, dataclasses.replace(now, times={0: now.times[0]})).cpus if row.cpu == cpu)
    assert (row.state, row.busy) == ("offline", None)
    assert "(offline)" in cpu_cell(row)


def test_offline_cpus_leave_a_gap_in_the_times() -> None:
    stat = "cpu  9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 90 90\ncpu2 1 1 1 1 1 1 1 1\nintr 5\n"
    assert cpu_times(stat) == {0: CpuTime(27, 72), 2: CpuTime(6, 8)}


def test_waiting_tasks_count_where_they_wait(samples: list[Sample]) -> None:
    _, now = samples
    task = next(task for task in now.state.tasks if task.enclave)
    cpu = min(cpu for cpu, owner in now.state.cpus.items() if owner.enclave == task.enclave)
    local_on = 3 << 62 | cpu
    waiting = [
        dataclasses.replace(changed(task, state="waiting", waiting_ns=7, queue=queue), tid=tid, on_cpu=False, cpu=cpu)
        for tid, queue in enumerate(
            (
                constant("PENDING_DSQS") + task.enclave,
                constant("CPU_DSQS") + cpu,
                constant("VTIME_DSQS") + cpu,
                local_on,
                0,
            )
        )
    ]
    frame = between(None, with_tasks(now, *waiting))
    row = frame.enclave(task.enclave)
    assert row is not None
    assert (row.waiting, row.queued, row.longest_wait_ns) == (5, 2, 7)
    assert {one.cpu: one.depth for one in frame.cpus if one.depth} == {cpu: 3}


def test_long_wait_dead_agent_and_fallback_are_not_healthy(samples: list[Sample]) -> None:
    before, now = samples
    agents = [one for one in now.state.enclaves if one.agent is not None]
    assert agents, "the recording has an enclave with an agent"
    one = agents[0]
    assert one.agent is not None

    def word(**fields: object) -> str:
        state = dataclasses.replace(now.state, enclaves=(dataclasses.replace(one, **fields),))  # type: ignore[arg-type]
        found = verdict(between(before, dataclasses.replace(now, state=state)).enclaves[0])
        assert found.is_well == (found.word == "ok")
        return found.word

    assert word(agent=dataclasses.replace(one.agent, state="gone")) == "NOAGENT!"
    assert word(agent=dataclasses.replace(one.agent, state="timed_out")) == "TIMEOUT!"
    assert word(fell_back=True) == "FIFO!"
    starving = changed(
        dataclasses.replace(now.state.tasks[0], enclave=one.id, on_cpu=False), state="waiting", waiting_ns=3 * 10**9
    )
    assert verdict(between(before, with_tasks(now, starving)).enclave(one.id)).word == "WAITS!"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (Sample(1.0, Snapshot("detached"), {}), "no core is attached"),
        (Sample(1.0, Snapshot("ejected", ejection=Ejected("stall", "x failed", "")), {}), "stall: x failed"),
        (Sample(1.0, Snapshot("unreadable"), {}, GhostError("stale pins", hint="do this")), "stale pins"),
    ],
    ids=lambda value: value.state.state if isinstance(value, Sample) else "",
)
def test_dead_core_is_explained_with_a_remedy_and_valid_json(sample: Sample, words: str) -> None:
    frame = between(None, sample)
    lines = core_lines(frame)
    assert words in "\n".join(lines)
    assert lines[-1].startswith("  try: ")
    jsonschema.validate(document(frame, frame.tasks), SCHEMA)


def test_document_of_a_recording_is_as_its_schema_says(samples: list[Sample]) -> None:
    for before in (None, samples[0]):
        frame = between(before, samples[1])
        jsonschema.validate(json.loads(json.dumps(document(frame, frame.tasks))), SCHEMA)


def test_queue_ids_are_exact_for_readers_with_doubles(samples: list[Sample]) -> None:
    _, now = samples
    ids = [1 << 63 | 1, 3 << 62 | 5, constant("PENDING_DSQS") + 1]
    tasks = [changed(dataclasses.replace(now.state.tasks[0], tid=tid), queue=id) for tid, id in enumerate(ids)]
    frame = between(None, with_tasks(now, *tasks))
    text = json.dumps(document(frame, frame.tasks))
    # JavaScript and jq read every number as a double.
    read = json.loads(text, parse_int=lambda digits: int(float(digits)))
    assert [int(task["queue"], 16) for task in read["tasks"]] == ids


def test_report_of_a_recording_is_within_80_columns_and_complete(frame: Frame) -> None:
    history = History()
    history.add(frame)
    lines = report(frame, history, sort_tasks(frame.tasks, "cpu"), 80, blocks=True)
    assert max(map(width_of, lines)) <= 80
    for row in frame.enclaves:
        assert any(row.policy in line for line in lines)
    assert sum(line.split()[:1] == [str(task.tid)] for line in lines for task in frame.tasks) == len(frame.tasks)
    wide = report(frame, history, frame.tasks, 120, blocks=True)
    assert max(map(width_of, wide)) <= 120
    assert any(line.endswith(" PENDING") for line in wide)


def test_tasks_are_sorted_by_each_column_and_stay_so_when_equal(frame: Frame) -> None:
    for name in columns.SORT_NAMES:
        rows = sort_tasks(frame.tasks, name)
        assert rows == sort_tasks(reversed(frame.tasks), name)
        assert sorted(row.tid for row in rows) == sorted(row.tid for row in frame.tasks)
    by_cpu = [row.cpu_share or 0 for row in sort_tasks(frame.tasks, "cpu")]
    assert by_cpu == sorted(by_cpu, reverse=True)


def test_filter_needs_every_word_and_an_exact_number(frame: Frame) -> None:
    task = frame.tasks[0]
    assert task in select_tasks(frame.tasks, words=f"{task.comm[:3].upper()} {task.state}")
    assert select_tasks(frame.tasks, words=str(task.tid)) == [task]
    assert select_tasks(frame.tasks, words=f"{task.comm} no-such-word") == []
    assert {row.enclave for row in select_tasks(frame.tasks, enclave=task.enclave)} == {task.enclave}


def test_name_in_brackets_and_one_with_escapes_are_shown(frame: Frame) -> None:
    shown = columns.fitting(columns.TASK_COLUMNS, 80)
    for comm, text in (("[kworker/0:1]", "[kworker/0:1]"), ("a\x1b[2Jb", r"a\x1b[2Jb"), ("内核线程", "内核线程")):
        line = columns.line(shown, dataclasses.replace(frame.tasks[0], comm=comm))
        assert text in line
        assert width_of(line) <= 80


def test_many_cpus_fit_into_few_lines(frame: Frame) -> None:
    rows = [dataclasses.replace(frame.cpus[0], cpu=cpu) for cpu in range(256)]
    lines = cpu_lines(rows, 80, 4, blocks=False)
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert cpu_lines(rows, 80, 3, blocks=False)[-1] == "and 120 more"
    assert all(len(cpu_cell(row)) == CPU_WIDTH - 1 for row in frame.cpus)


def test_constant_is_drawn_at_its_height_and_small_values_are_visible() -> None:
    assert sparkline([100.0] * 3, 3) == "███"
    assert sparkline([0.5] * 2, 4, 1.0) == "  ▄▄"
    assert sparkline([0, 1, 1000], 3) == " ▁█"
    assert sparkline([0, 1, 2], 3, blocks=False) == " =@"
    assert bar(0.5, 0.25, 10) == "[##::    ]"


@given(st.text(), st.integers(2, 20), st.booleans())
def test_text_fits_its_columns_exactly(text: str, width: int, right: bool) -> None:
    assert width_of(fit(text, width, right=right)) == width


def test_history_keeps_values_of_enclaves_that_stay_and_of_the_task_that_is_followed(samples: list[Sample]) -> None:
    frame = between(*samples)
    history = History()
    history.follow(frame.tasks[0].tid)
    for _ in range(3):
        history.add(frame)
    assert all(len(history.latency[row.id]) == 3 for row in frame.enclaves)
    assert len(history.cpu_share) == 3
    history.add(between(None, Sample(1.0, Snapshot("detached"), {})))
    assert history.latency == {}


def test_policy_with_an_agent_is_swapped_by_run() -> None:
    from ghostbpf.schedulers.registry import POLICIES

    assert str(changes.swap(3, POLICIES["rr"])) == "ghostbpf enclave swap 3 rr"
    assert str(changes.swap(3, POLICIES["sol"])) == "ghostbpf run sol --enclave 3 --keep -- true"


def _without_textual(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; sys.modules['textual'] = None; from ghostbpf.tools.cli import main; main()"
    # A terminal, since the screen needs one; script(1) makes it.
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("root")
def test_once_works_without_textual() -> None:
    done = _without_textual("top", "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


def typed(question: questions.Question, *keys: str) -> bool:
    """Press keys, each of which but the last must leave the question open; returns whether it is over."""
    done = False
    for key in keys:
        assert not done
        done = question.press(key, key if len(key) == 1 else None)
    return done


def test_only_y_confirms() -> None:
    for key in ("n", "escape", "enter", "space", "q", "Y", "y"):
        answers: list[bool] = []
        assert typed(questions.Confirm("destroy?", answers.append), key)
        assert answers == [key in ("y", "Y")]


def test_line_is_written_live_and_comes_back_when_it_is_left() -> None:
    live: list[str] = []
    answers: list[str] = []
    assert typed(questions.Prompt("?", answers.append, "ab", live.append), "backspace", "c", "enter")
    assert (live, answers) == (["a", "ac"], ["ac"])
    assert typed(questions.Prompt("?", answers.append, "ab", live.append), "ctrl+u", "x", "escape")
    assert (live[2:], answers) == (["", "x", "ab"], ["ac"])


def test_choice_scrolls_and_is_taken_or_left() -> None:
    answers: list[str] = []
    choices = {f"policy{number}": "what it does" for number in range(30)}
    question = questions.Choose("which?", choices, answers.append)
    assert not typed(question, *["down"] * 20)
    assert any(line.startswith("> policy20") for line in question.lines)
    assert len(question.lines) == 12
    assert typed(question, "up", "enter")
    assert typed(questions.Choose("which?", choices, answers.append), "escape")
    assert answers == ["policy19"]
