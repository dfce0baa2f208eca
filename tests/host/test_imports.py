# SPDX-License-Identifier: Apache-2.0
"""What a start imports: nothing that only another command, a compilation or an error uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COMPILER = {"ghostbpf.loaders.compilation", "ghostbpf.loaders._bcc", "ghostbpf.loaders.headers", "cffi", "tempfile"}
_AGENTS = {"ghostbpf.schedulers.userspace", "ghostbpf.schedulers.agents.spec", "ghostbpf.hints"}
_RARE = {"importlib.metadata", "tabulate", "difflib", "subprocess", "runpy"}

STARTS: dict[str, tuple[str, set[str]]] = {
    "help": (
        "from ghostbpf.tools.cli import ghostbpf; ghostbpf(['--help'], standalone_mode=False)",
        {"ghostbpf.loaders", "ghostbpf.schedulers", "ghostbpf.hints", "json", "dataclasses"} | _RARE,
    ),
    "run biff": (
        "from ghostbpf.tools.run import command; command(['biff', '--help'], standalone_mode=False)",
        _COMPILER | _AGENTS | _RARE,
    ),
    "trace": (
        "from ghostbpf.tools.trace.command import command; command(['--help'], standalone_mode=False)",
        {"ghostbpf.loaders", "ghostbpf.schedulers", "ghostbpf.tools.trace.tracer", "json", "dataclasses"} | _RARE,
    ),
    "trace runqlat": (
        "from ghostbpf.tools.trace.command import command; command(['runqlat', '--help'], standalone_mode=False)",
        {"ghostbpf.schedulers.core", "ghostbpf.schedulers.enclave", "matplotlib"} | _COMPILER | _AGENTS | _RARE,
    ),
}


_SCRIPT = """
import sys
before = set(sys.modules)
{start}
print("imported:", *sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("start", STARTS)
def test_start_imports_no_more_than_it_uses(start: str) -> None:
    code, spared = STARTS[start]
    imported: set[str] = set()
    for _ in range(2):  # the first start parses C declarations, which needs more
        script = [sys.executable, "-c", _SCRIPT.format(start=code)]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        imported = set(done.stdout.rpartition("imported:")[2].split())
    assert "click" in imported
    assert imported & spared == set()


def test_own_policies_are_found_without_a_search_of_packages() -> None:
    script = """
import importlib.metadata
from ghostbpf.schedulers.registry import POLICIES

importlib.metadata.entry_points = None
assert [POLICIES[name].name for name in ("biff", "cfs", "sol")] == ["biff", "cfs", "sol"]
assert "rr" in POLICIES
try:
    POLICIES["zebra"]
except TypeError:
    print("searched")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "searched\n"
