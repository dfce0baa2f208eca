# SPDX-License-Identifier: Apache-2.0
"""Commands work with exactly the capabilities that docs/privileges.md lists, and name a missing one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "privileges.md"
_ROW = re.compile(r"^\| `([^`]+)` \| ?((?:CAP_\w+(?:, )?)*) ?\|$", re.MULTILINE)
ROWS = {line: names.split(", ") if names else [] for line, names in _ROW.findall(PAGE.read_text(encoding="utf-8"))}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="dropping capabilities needs root")


def ghostbpf(words: list[str], capabilities: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as user 0, with ``capabilities`` alone, or with all."""
    command = [sys.executable, "-m", "ghostbpf.tools.cli", *words]
    if capabilities is not None:
        names = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in capabilities)
        command = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all{names}", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_page_lists_commands() -> None:
    assert {line.split()[0] for line in ROWS} >= {"policies", "compare", "trace", "record"}


@pytest.mark.soak
@pytest.mark.parametrize("line", ROWS)
def test_command_needs_exactly_the_listed_capabilities(line: str, tmp_path: Path) -> None:
    capabilities = ROWS[line]
    if "FILE" in line and not line.startswith("record"):
        assert ghostbpf(["record", "-o", str(tmp_path / "trace"), "-d", "0.2"]).returncode == 0
    words = [{"FILE": str(tmp_path / "trace"), "PID": str(os.getpid())}.get(word, word) for word in line.split()]
    assert ghostbpf(words).returncode == 0  # compiles what the cache does not have
    done = ghostbpf(words, capabilities)
    assert done.returncode == 0, done.stderr
    for name in capabilities:
        less = ghostbpf(words, [other for other in capabilities if other != name])
        assert less.returncode == 1
        assert re.search(rf"^error: cannot .* without {name}\n  try: ", less.stderr, re.MULTILINE), less.stderr
