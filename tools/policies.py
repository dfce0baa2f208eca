# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf policies``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import click

from ..schedulers.agents import AgentPolicySpec
from ..schedulers.policy import Option, Policy
from ..schedulers.registry import POLICIES
from .output import json_option, show

_WIDTH = 54


@click.command(epilog="\b\nExamples:\n  ghostbpf policies\n  ghostbpf run biff --help    the options of one policy")
@json_option
def command(as_json: bool) -> None:
    """List the policies, with their options and defaults.

    Every policy in Python also has --fastpath, --agent-timeout and --agent-cpu, and, if one agent decides for all CPUs,
    --spin.
    """
    rows = [
        {
            "policy": policy.name,
            "in": "Python" if isinstance(policy, AgentPolicySpec) else "BPF",
            "options": " ".join(f"--{option.name} {option.default}" for option in _own_options(policy)),
            "what it does": policy.summary,
        }
        for policy in POLICIES.values()
    ]
    show(rows if as_json else [line for row in rows for line in _lines(row)], as_json=as_json)


def _lines(row: dict[str, str]) -> Iterator[dict[str, str]]:
    """The row for people, within 80 columns: what the policy does, and then its options."""
    options = textwrap.wrap(re.sub(" (?!--)", "\N{NO-BREAK SPACE}", row["options"]), _WIDTH, break_on_hyphens=False)
    texts = [
        *textwrap.wrap(row["what it does"], _WIDTH),
        *(line.replace("\N{NO-BREAK SPACE}", " ") for line in options),
    ]
    for number, text in enumerate(texts or [""]):
        names = (row["policy"], row["in"]) if not number else ("", "")
        yield dict(zip(("policy", "in", "what it does, and its options"), (*names, text), strict=True))


def _own_options(policy: Policy) -> tuple[Option, ...]:
    options: tuple[Option, ...] = policy.agent.options if isinstance(policy, AgentPolicySpec) else policy.options
    return options
