# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/privileges.md as the tests of both tiers read and check them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pages import DOCS

_ROW = re.compile(r"^\| `([^`]+)` \| ?((?:CAP_\w+(?:, )?)*) ?\|$", re.MULTILINE)


def rows(heading: str) -> dict[str, list[str]]:
    """The capabilities of each command line in the table below ``heading``, in order."""
    _, _, text = (DOCS / "privileges.md").read_text(encoding="utf-8").partition(f"\n{heading}\n")
    section = re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = {line: names.split(", ") if names else [] for line, names in _ROW.findall(section)}
    assert len(found) == section.count("\n| `"), f"not every row below {heading!r} can be read"
    return found


def check_exact(capabilities: Sequence[str], run: Callable[[list[str]], tuple[int, str]]) -> str:
    """Check that a command fails with one of ``capabilities`` less and names that one, and that it works with all.

    ``run`` runs it with the capabilities that it is given alone, and returns its status and what it wrote to stderr.
    Returns what it wrote with all.
    """
    for name in capabilities:
        status, err = run([other for other in capabilities if other != name])
        assert status == 1, err
        message = re.search(r"^error: cannot .*\n  try: .*", err, re.MULTILINE)
        assert re.search(rf"\b{name}\b", message[0] if message else ""), f"the message does not name {name}: {err}"
        assert "Traceback" not in err
    status, err = run(list(capabilities))
    assert status == 0, err
    return err
