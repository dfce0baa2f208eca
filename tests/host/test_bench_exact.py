# SPDX-License-Identifier: Apache-2.0
"""What ``make bench-exact`` does without a guest: its command line, baselines, changes in per cent and tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ghostbpf.experiments.bench_exact import main
from ghostbpf.experiments.exact_report import Figure, change, grown, least, read_baseline, tables
from ghostbpf.loaders.errors import GhostError

PIPE = Figure("biff", "workload", "pipe", "instructions per operation", 29_000.0)
MESSAGING = Figure("biff", "workload", "messaging", "instructions per message", 25_000.0)
DISPATCH = Figure("biff", "bpf", "core_dispatch", "instructions per call", 690.0)
CALLS = Figure("biff", "bpf", "core_dispatch", "calls per operation", 2.5)


def written(path: Path, *figures: Figure) -> Path:
    """``path`` with the figures as --json prints them."""
    path.write_text("".join(json.dumps(figure.as_row()) + "\n" for figure in figures))
    return path


def test_printed_figure_is_read_back_unchanged() -> None:
    assert Figure.from_json(json.dumps(PIPE.as_row())) == PIPE


def test_rows_compared_with_a_baseline_can_be_the_next_baseline() -> None:
    row = PIPE.as_row({PIPE.key: 20_000.0})
    assert (row["baseline"], row["change"]) == (20_000.0, pytest.approx(45.0))
    assert Figure.from_json(json.dumps(row)) == PIPE


@pytest.mark.parametrize(
    ("value", "before", "expected"),
    [(110, 100, 10), (50, 100, -50), (7, 7, 0), (0, 0, 0), (0, 4, -100), (4, 0, None), (4, None, None)],
)
def test_change_is_in_per_cent_of_the_baseline(value: float, before: float | None, expected: float | None) -> None:
    assert change(value, before) == (None if expected is None else pytest.approx(expected))


def test_baseline_tells_figures_of_one_name_apart_by_unit(tmp_path: Path) -> None:
    baseline = read_baseline(written(tmp_path / "before", DISPATCH, CALLS))
    assert baseline == {DISPATCH.key: 690.0, CALLS.key: 2.5}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "it is not an object"),
        (json.dumps({**PIPE.as_row(), "value": "29"}), "value is '29'"),
        (json.dumps({**PIPE.as_row(), "value": True}), "value is True"),
        (json.dumps({**PIPE.as_row(), "part": None}), "part is None"),
    ],
)
def test_line_that_is_no_figure_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = written(tmp_path / "before", PIPE)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(GhostError, match=f"before:2: not a figure of bench_exact: {reason}"):
        read_baseline(path)


def test_empty_missing_and_binary_baselines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("\n")
    for name, reason in (("binary", "it is not text"), ("empty", "has no figures"), ("missing", "No such file")):
        with pytest.raises(GhostError, match=reason):
            read_baseline(tmp_path / name)


def test_table_has_a_row_for_each_scheduler_and_for_each_program() -> None:
    eevdf = replace(PIPE, scheduler="EEVDF", value=20_400.4)
    assert tables([eevdf, PIPE, MESSAGING, DISPATCH, CALLS]).splitlines() == [
        "instructions of all CPUs: per operation of pipe, per message of messaging, of BPF per pipe operation",
        "scheduler      pipe    messaging",
        "-----------  ------  -----------",
        "EEVDF        20,400",
        "biff         29,000       25,000",
        "",
        "BPF programs in pipe",
        "scheduler    program          instructions per call    calls per operation",
        "-----------  -------------  -----------------------  ---------------------",
        "biff         core_dispatch                      690                   2.50",
    ]


def test_table_with_a_baseline_shows_each_change_and_what_is_new() -> None:
    lines = tables([PIPE, MESSAGING], {PIPE.key: 40_000.0}).splitlines()
    assert lines[-1].split() == ["biff", "29,000", "-27.5%", "25,000", "(new)"]


def test_control_characters_in_a_name_do_not_reach_the_terminal() -> None:
    assert r"\x1b[2J" in tables([replace(PIPE, scheduler="\x1b[2J")])


def test_only_instructions_that_grew_by_more_than_the_limit_are_named() -> None:
    baseline = {PIPE.key: 26_000.0, MESSAGING.key: 24_000.0, CALLS.key: 1.0}
    assert grown([PIPE, MESSAGING, DISPATCH, CALLS], baseline, 10) == [
        "biff, pipe: 29,000 instructions per operation, 26,000 before: +11.5 %, above 10 %"
    ]
    assert not grown([PIPE, MESSAGING, DISPATCH, CALLS], baseline, 12)


def test_lesser_of_two_runs_counts() -> None:
    higher, lower = replace(PIPE, value=PIPE.value + 1), replace(PIPE, value=PIPE.value - 1)
    assert least([PIPE, MESSAGING], [higher]) == [PIPE, MESSAGING]
    assert least([PIPE], [lower, MESSAGING]) == [lower]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no 'nothing' to measure"),
        (["--with", "scx_simple"], "is not NAME=COMMAND"),
        (["--with", "=scx_simple"], "is not NAME=COMMAND"),
        (["--with", "simple="], "is not NAME=COMMAND"),
        (["--with", "simple='"], "no closing quotation"),
        (["--with", "biff=scx_simple"], "the name 'biff' is taken"),
        (["--with", "sol, fast path off=scx_simple"], "is taken"),
        (["--with", "a=b", "--with", "a=c"], "the name 'a' is taken"),
        (["--limit", "10"], "--limit compares with --baseline FILE"),
        (["--tasks", "-1"], "--tasks -1: a number of tasks is not negative"),
    ],
)
def test_wrong_command_line_is_refused_before_a_guest_boots(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_baseline_is_refused_before_a_guest_boots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--baseline", str(tmp_path / "missing")]) == 2
    assert "try: --baseline FILE" in capsys.readouterr().err
