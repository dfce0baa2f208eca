# SPDX-License-Identifier: Apache-2.0
"""``--seed N``: the same random numbers for the same seed and test, whichever other tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_draws(number, rng):
    with open(os.environ["DRAWN"], "a") as file:
        file.write(f"{number} {rng.random()}\\n")
"""


def draw(directory: Path, *arguments: str) -> tuple[dict[str, float], str]:
    """Run two tests, each of which draws a number; returns the numbers by test, and the output."""
    tests, drawn = directory / "test_two.py", directory / "drawn"
    tests.write_text(TESTS)
    drawn.write_text("")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DRAWN": str(drawn),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={directory}"]
    result = subprocess.run([*command, *arguments, tests], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (line.split() for line in drawn.read_text().splitlines())
    return {number: float(value) for number, value in lines}, result.stdout


def test_same_seed_repeats_the_numbers_of_a_test_that_runs_alone(tmp_path: Path) -> None:
    both, output = draw(tmp_path, "--seed", "5")
    assert "seed: 5 (to repeat a failure: pytest --seed 5 TEST)" in output
    assert len(set(both.values())) == 2
    alone, _ = draw(tmp_path, "--seed", "5", "-k", "test_draws and 2")
    assert alone == {"2": both["2"]}


@pytest.mark.parametrize("other", [("--seed", "6"), ()], ids=["another seed", "no seed"])
def test_another_seed_gives_other_numbers(tmp_path: Path, other: tuple[str, ...]) -> None:
    first, _ = draw(tmp_path, "--seed", "5")
    second, _ = draw(tmp_path, *other)
    assert set(first.values()).isdisjoint(second.values())
