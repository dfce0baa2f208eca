# SPDX-License-Identifier: Apache-2.0
"""``--done FILE``: record which tests have passed or failed, so that a second guest runs only the others.

QEMU itself sometimes kills a guest. FILE outlives the guest; a guest started with the same FILE leaves out the tests
that passed or failed in an earlier one. A skipped test is not recorded: the next guest runs it again, and reports it
as skipped again.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--done", type=Path, metavar="FILE", help="leave out the tests that FILE lists, and add to FILE")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--done")) is not None:
        config.pluginmanager.register(Outcomes(path))


class Outcomes:
    """The tests that passed or failed, one per line of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._before = {name: outcome for outcome, _, name in (line.partition(" ") for line in lines)}
        self._failed: set[str] = set()
        self._skipped: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests that passed or failed before."""
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self._before])
        items[:] = [item for item in items if item.nodeid not in self._before]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a test at the end of its teardown, unless it was skipped."""
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.skipped:
            self._skipped.add(report.nodeid)
        if report.when != "teardown" or report.nodeid in self._skipped - self._failed:
            return
        outcome = "failed" if report.nodeid in self._failed else "passed"
        with self._path.open("a") as file:
            file.write(f"{outcome} {report.nodeid}\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail if a test failed in an earlier guest."""
        if failed := [name for name, outcome in self._before.items() if outcome == "failed"]:
            print("\nfailed in an earlier guest:", *failed, sep="\n  ")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._before:
            session.exitstatus = pytest.ExitCode.OK
