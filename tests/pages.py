# SPDX-License-Identifier: Apache-2.0
"""The documentation as the tests of both tiers read it: blocks of code, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

#: Pages whose console blocks a guest runs, in order.
RUN_IN_GUEST = ("index.md", "quick-start.md", "troubleshooting.md", "tutorial.md")
RUN_IN_GUEST_SOAK = tuple(page for page in PAGES if page.startswith("policies/"))
#: Console blocks that other tests take apart and run.
RUN_ELSEWHERE = {"hints.md": "tests/guest/test_hints.py"}
#: Lines of a guest's pages that a guest cannot run.
NOT_IN_GUEST = ("ghostbpf vm",)

_HOST = re.compile(r"ghostbpf (policies\b|trace |.* --help)")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The command lines of the console blocks, without prompt and sudo."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ").removeprefix("sudo ") for line in lines if line.startswith("$ ")]


def runs_on_host(line: str) -> bool:
    """Whether a command line needs no sched_ext."""
    return _HOST.match(line) is not None and "--enclave" not in line


def prompted(page: str) -> list[list[str]]:
    """The words of each `ghostbpf` after a prompt, in any block: console, or indented with a root prompt."""
    text = (DOCS / page).read_text().replace("\\\n", "")
    prompt = r"^(?:\$ |    [#$] )(?:sudo )?(?:.*\| )?(?:taskset \S+ \S+ )?"
    found = re.findall(prompt + r"ghostbpf (.*?)(?: *&)?(?:   +#.*)?$", text, re.MULTILINE)
    return [shlex.split(line) for line in found]
