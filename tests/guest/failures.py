# SPDX-License-Identifier: Apache-2.0
"""Print each failure when it happens, too: the end of a guest that dies, or is stopped, shows none."""

from __future__ import annotations

import pytest


class Failures:
    """Prints failed reports on the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the report of a phase that failed."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.write_line(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")
