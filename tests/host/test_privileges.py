# SPDX-License-Identifier: Apache-2.0
"""Commands work with exactly the capabilities that docs/privileges.md lists, and name a missing one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from privileges import check_exact, rows

ROWS = rows("### Without an enclave")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="dropping capabilities needs root")


def ghostbpf(words: list[str], capabilities: list[str] | None = None) -> tuple[int, str]:
    """Run the command as user 0, with ``capabilities`` alone, or with all; returns its status and stderr."""
    command = [sys.executable, "-m", "ghostbpf.tools.cli", *words]
    if capabilities is not None:
        names = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in capabilities)
        command = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all{names}", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_page_lists_commands() -> None:
    assert {line.split()[0] for line in ROWS} >= {"policies", "compare", "trace", "record"}
    with_enclaves = {" ".join(line.split()[:2]) for line in rows("### With enclaves")}
    changes = {f"enclave {name}" for name in ("add", "rm", "resize", "swap", "limits", "set", "destroy")}
    assert with_enclaves >= {"run biff", "run edf", "apply FILE", "service FILE", "hints admit", *changes}


@pytest.mark.soak
@pytest.mark.parametrize("line", ROWS)
def test_command_needs_exactly_the_listed_capabilities(line: str, tmp_path: Path) -> None:
    if "FILE" in line and not line.startswith("record"):
        assert ghostbpf(["record", "-o", str(tmp_path / "trace"), "-d", "0.2"])[0] == 0
    words = [{"FILE": str(tmp_path / "trace"), "PID": str(os.getpid())}.get(word, word) for word in line.split()]
    assert ghostbpf(words)[0] == 0  # compiles what the cache does not have
    check_exact(ROWS[line], lambda capabilities: ghostbpf(words, capabilities))
