# SPDX-License-Identifier: Apache-2.0
"""mkdocs hook: the table of a policy's options, from the registry, in place of `<!-- options NAME -->`."""

from __future__ import annotations

import re
from typing import Any

from ghostbpf.schedulers.policy import Option
from ghostbpf.schedulers.registry import POLICIES

_MARK = re.compile(r"^<!-- options (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark; an unknown name ends the build."""
    return _MARK.sub(lambda match: _table(_own_options(match[1])), markdown)


def _own_options(name: str) -> tuple[Option, ...]:
    """Those of the policy alone, or for "agents" those that every policy in Python has."""
    if name == "agents":
        spec = POLICIES["fifo_centralized"]
        own = {option.name for option in _own_options(spec.name)}
        return tuple(option for option in spec.options if option.name not in own)
    policy = POLICIES[name]
    agent = getattr(policy, "agent", None)  # the class, if the policy is in Python
    options: tuple[Option, ...] = policy.options if agent is None else agent.options
    return options


def _table(options: tuple[Option, ...]) -> str:
    rows = "".join(f"| `--{option.name}` | `{option.default}` | {option.help} |\n" for option in options)
    return f"| option | default | |\n|---|---|---|\n{rows}" if rows else "It has no options of its own."
