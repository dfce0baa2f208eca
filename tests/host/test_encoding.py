# SPDX-License-Identifier: Apache-2.0
"""Files are read as UTF-8, whatever the locale."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ghostbpf.loaders
import pytest

ROOT = Path(ghostbpf.loaders.__file__).resolve().parents[1]
DIRECTORIES = ("experiments", "hints", "loaders", "schedulers", "tools", "vm")


def in_locale_encoding(source: str) -> Iterator[int]:
    """The lines of ``source`` with a call that reads or writes text in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        match node.func:
            case ast.Attribute(attr="read_text" | "write_text"):
                yield node.lineno
            case ast.Name(id="open"):
                modes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
                if not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes):
                    yield node.lineno


def test_no_file_is_read_in_the_locales_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for directory in DIRECTORIES
        for path in (ROOT / directory).rglob("*.py")
        for line in in_locale_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("source", ["path.read_text()", "path.write_text(text)", "open(path)", "open(path, mode='w')"])
def test_call_without_encoding_is_found(source: str) -> None:
    assert [*in_locale_encoding(source)] == [1]


@pytest.mark.parametrize("source", ["path.read_text(encoding='utf-8')", "open(path, 'rb')", "os.open(path, flags)"])
def test_call_with_encoding_or_bytes_is_not_found(source: str) -> None:
    assert not [*in_locale_encoding(source)]


def test_types_are_read_in_the_c_locale() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = "from ghostbpf.schedulers import core; print(core.constant('ABI_VERSION'))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **ascii_only}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
