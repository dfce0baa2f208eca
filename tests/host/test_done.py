# SPDX-License-Identifier: Apache-2.0
"""``--done FILE`` of the guest tier: which tests a second guest runs, and its report of both guests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUEST_TIER = Path(__file__).parents[1] / "guest"

TESTS = """
import os
import pytest

def test_passes():
    pass

def test_is_skipped():
    pytest.skip("a reason")

def test_fails_in_its_teardown(fails):
    pass

@pytest.fixture
def fails():
    yield
    assert BROKEN == "no"

def test_ends_the_guest():
    if KILLED == "yes":
        os._exit(123)

BROKEN, KILLED = os.environ["BROKEN"], os.environ["KILLED"]
"""


class Guest:
    """Runs the same four tests with ``--done``, each time in a new process, which stands for a new guest."""

    def __init__(self, directory: Path) -> None:
        self._tests, self._done = directory / "test_four.py", directory / "done"
        self._tests.write_text(TESTS)

    def run(self, *, broken: bool = False, killed: bool = False) -> tuple[int, str]:
        """Run pytest; returns its exit status and its output."""
        words = {True: "yes", False: "no"}
        environment = os.environ | {
            "PYTHONPATH": str(GUEST_TIER),
            "BROKEN": words[broken],
            "KILLED": words[killed],
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        command = [sys.executable, "-m", "pytest", "-p", "done", "-p", "no:cacheprovider", "-v", "-rs"]
        command += [f"--rootdir={self._tests.parent}", f"--done={self._done}", str(self._tests)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return result.returncode, result.stdout

    @property
    def recorded(self) -> list[str]:
        return [re.sub(r"\S*::", "", line) for line in self._done.read_text().splitlines()]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_second_guest_runs_the_test_that_ended_the_first_and_no_passed_test(guest: Guest) -> None:
    status, _ = guest.run(killed=True)
    assert status == 123
    assert guest.recorded == ["passed test_passes", "passed test_fails_in_its_teardown"]
    status, out = guest.run()
    assert status == 0, out
    assert "test_ends_the_guest PASSED" in out
    assert "test_passes" not in out
    assert guest.recorded[2:] == ["passed test_ends_the_guest"]


def test_skipped_test_is_not_recorded_and_is_reported_by_each_guest(guest: Guest) -> None:
    for _ in range(2):
        status, out = guest.run()
        assert status == 0, out
        assert "a reason" in out
        assert "1 skipped" in out
    assert not [line for line in guest.recorded if "skipped" in line]


def test_failure_in_an_earlier_guest_fails_the_later_one(guest: Guest) -> None:
    status, _ = guest.run(broken=True, killed=True)
    assert status == 123
    assert "failed test_fails_in_its_teardown" in guest.recorded
    status, out = guest.run()
    assert status == 1, out
    assert re.search(r"failed in an earlier guest:\n\s+\S*test_fails_in_its_teardown", out)
