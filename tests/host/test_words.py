# SPDX-License-Identifier: Apache-2.0
"""The check of the wording: what it finds in each kind of file, and what it leaves alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[1] / "lint" / "words.py"
_spec = importlib.util.spec_from_file_location("lint_words", _SCRIPT)
assert _spec is not None
assert _spec.loader is not None
words = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(words)


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.py", '"""Plain."""\n\n# One line.\n# Whoever waits.\nx = "nobody"\n', [4]),
        ("a.py", 'def f():\n    """First.\n\n    The one that runs.\n    """\n', [4]),
        ("a.py", "x = 1  # is it on its CPU?\n", [1]),
        ("a.py", "# A task `whoever` is a name in code.\n", []),
        ("a.c", "int a; /* plain */\n/*\n * plain\n * somebody waits\n */\n", [4]),
        ("a.c", '/* Has it ended? */\nconst char *s = "/* nobody */";\n// whom\n', [1, 3]),
        ("a.md", "Plain text.\n\n```\nnobody\n```\n\n    nobody\n\nWith `nobody`, a task had better wait.\n", [9]),
        ("a.md", "Is a question allowed in a document?\n", []),
        ("a.sh", "#!/bin/sh\n# for want of a word\necho nobody\n", [2]),
    ],
)
def test_wording_is_found_on_its_line(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = list(words.findings(path))
    assert [int(line.removeprefix(f"{path}:").split(":")[0]) for line in found] == lines
