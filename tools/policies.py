# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf policies``."""

from __future__ import annotations

import click

from ..schedulers.agents import AgentPolicySpec
from ..schedulers.policy import Option, Policy
from ..schedulers.registry import POLICIES
from .output import json_option, show


@click.command(epilog="\b\nExamples:\n  ghostbpf policies\n  ghostbpf run biff --help    the options of one policy")
@json_option
def command(as_json: bool) -> None:
    """List the policies, with their options and defaults.

    Every policy in Python also has --fastpath, --agent-timeout and --agent-cpu, and, if one agent decides for all CPUs,
    --spin.
    """
    show(
        (
            {
                "policy": policy.name,
                "in": "Python" if isinstance(policy, AgentPolicySpec) else "BPF",
                "options": " ".join(f"--{option.name} {option.default}" for option in _own_options(policy)),
                "what it does": policy.summary,
            }
            for policy in POLICIES.values()
        ),
        as_json=as_json,
    )


def _own_options(policy: Policy) -> tuple[Option, ...]:
    options: tuple[Option, ...] = policy.agent.options if isinstance(policy, AgentPolicySpec) else policy.options
    return options
