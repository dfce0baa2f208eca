# SPDX-License-Identifier: Apache-2.0
"""The console blocks of the documentation run, and the kernel functions that it names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import Done, ghostbpf, start
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.schedulers.enclave import Enclaves
from workload import present_cpus

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import DOCS, NOT_IN_GUEST, RUN_IN_GUEST, RUN_IN_GUEST_SOAK, commands

pytestmark = pytest.mark.usefixtures("quiet")


def run(line: str, directory: Path) -> Done:
    """Run a line of a page; other programs than ghostbpf may use every CPU."""
    words = shlex.split(line)
    if words[0] == "ghostbpf":
        return start(*words[1:], first=lambda: os.chdir(directory)).wait()
    done = subprocess.run(
        line,
        shell=True,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, present_cpus()),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_page(page: str, directory: Path) -> None:
    """Run the command lines of a page in order; each must succeed, and no enclave may be left."""
    lines = [line for line in commands(page) if not line.startswith(NOT_IN_GUEST)]
    assert lines
    for line in lines:
        done = run(line, directory)
        assert done.status == 0, f"{line}\n{done.out}\n{done.err}"
    assert Enclaves.open() is None


@pytest.mark.kernel_independent
@pytest.mark.parametrize("page", sorted({*RUN_IN_GUEST} - {"tutorial.md", "troubleshooting.md"}))
def test_commands_of_a_page_succeed(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_commands_of_troubleshooting_succeed_beside_an_enclave(tmp_path: Path) -> None:
    assert ghostbpf("run", "biff", "--cpus", "2-3", "--keep", "--", "true").status == 0
    for line in commands("troubleshooting.md"):
        if not line.startswith(NOT_IN_GUEST):
            done = run(line, tmp_path)
            assert done.status == 0, f"{line}\n{done.out}\n{done.err}"
    assert ghostbpf("enclave", "destroy", "1").status == 0


@pytest.mark.soak
@pytest.mark.parametrize("page", [page for page in RUN_IN_GUEST_SOAK if commands(page)])
def test_commands_of_a_policy_page_succeed(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)


def test_wakeup_names_functions_of_this_kernel() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(kernel|net)/", (DOCS / "wakeup.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    missing = [name for name, _ in rows if Btf.kernel().find(name, Kind.FUNC) is None]
    assert missing == []
