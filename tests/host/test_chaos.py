# SPDX-License-Identifier: Apache-2.0
"""Chaos before it is loaded: its options, and the line that repeats a run."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.policy import OptionError
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.seed import Repetition

CHAOS = POLICIES["chaos"]


@pytest.mark.parametrize(
    ("option", "text", "field", "value"),
    [
        ("seed", "7", "seed", 7),
        ("seed", "0xffffffffffffffff", "seed", 2**64 - 1),
        ("delay", "12.5%", "delay", 1250),
        ("preempt", "100%", "preempt", 10000),
        ("migrate", "0", "migrate", 0),
        ("hold", "1s", "delay_ns", 10**9),
        ("slice", "100us", "slice_ns", 100_000),
    ],
)
def test_option_has_its_value(option: str, text: str, field: str, value: int) -> None:
    assert CHAOS.parse({option: text}).values[field] == value


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("seed", "soon", 'bad seed "soon"'),
        ("seed", "-1", 'bad seed "-1"'),
        ("seed", str(2**64), "a number from 0 to"),
        ("delay", "101%", 'bad chance "101%": from 0% to 100%'),
        ("reorder", "nan", 'bad chance "nan"'),
        ("hold", "2s", "up to 1s"),
        ("slice", "1s", "up to 0.1s"),
    ],
)
def test_option_that_could_starve_a_task_is_refused(option: str, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        CHAOS.parse({option: text})
    assert error.value.option == option


def test_seed_left_out_is_another_in_each_run() -> None:
    assert len({CHAOS.parse().values["seed"] for _ in range(8)}) > 1


def test_seed_left_out_is_printed_and_a_failure_says_how_to_repeat_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = CHAOS.parse()
    seed = options.values["seed"]
    words = ("--cpus", "1-2", "--delay=5%", "--", "./my test", "--seed", "9")
    repetition = Repetition(options, words)
    assert capsys.readouterr().err == f"seed {seed}\n"
    repetition.tell(words[4:], 3)
    assert capsys.readouterr().err == (
        f"./my test exits with status 3 under seed {seed}\n"
        f"  try: ghostbpf run chaos --seed {seed} --cpus 1-2 --delay=5% -- './my test' --seed 9\n"
    )


@pytest.mark.parametrize("given", [["--seed", "7"], ["--seed=7"], ["--seed=5", "--seed", "7"]])
def test_given_seed_is_not_printed_and_replaced_in_the_line(
    capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    repetition = Repetition(CHAOS.parse({"seed": "7"}), [*given, "--", "./mytest"])
    assert capsys.readouterr().err == ""
    repetition.tell(["./mytest"], 134)
    assert capsys.readouterr().err.endswith("  try: ghostbpf run chaos --seed 7 -- ./mytest\n")


@pytest.mark.parametrize("status", [0, 130, 143])
def test_command_that_succeeds_or_is_told_to_end_needs_no_repetition(
    capsys: pytest.CaptureFixture[str], status: int
) -> None:
    Repetition(CHAOS.parse({"seed": "7"}), ["--seed", "7"]).tell(["./mytest"], status)
    assert capsys.readouterr().err == ""


def test_policy_without_a_seed_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Repetition(POLICIES["biff"].parse(), ["--", "false"]).tell(["false"], 1)
    assert capsys.readouterr().err == ""
