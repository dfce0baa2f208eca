# SPDX-License-Identifier: Apache-2.0
"""Policies with a seed: which one a run has, and how to repeat the run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from ..schedulers.launch import termination_signals
from ..schedulers.policy import Policy, PolicyOptions
from .output import with_remedy

_OPTION = "--seed"


def seed_of(options: PolicyOptions[Policy]) -> int | None:
    """The seed of a policy that has one."""
    return options.values.get("seed")


class Repetition:
    """How to repeat ``ghostbpf run POLICY WORDS``; it prints a seed that WORDS leave to chance."""

    def __init__(self, options: PolicyOptions[Policy], words: Sequence[str]) -> None:
        self._seed = seed_of(options)
        if self._seed is None:
            return
        rest, given = _without_seed(words)
        self._line = shlex.join(["ghostbpf", "run", options.policy.name, _OPTION, str(self._seed), *rest])
        if given in (None, "random"):
            click.echo(f"seed {self._seed}", err=True)

    def tell(self, command: Sequence[str], status: int) -> None:
        """Say how to repeat the run if ``command`` failed, and not because it was told to end."""
        if self._seed is None or not status or status - 128 in termination_signals():
            return
        message = f"{command[0]} exits with status {status} under seed {self._seed}"
        click.echo(with_remedy(message, self._line), err=True)


def _without_seed(words: Sequence[str]) -> tuple[list[str], str | None]:
    """``words`` without --seed, and its last value."""
    rest: list[str] = []
    given = None
    left = iter(words)
    for word in left:
        if word == "--":
            return [*rest, word, *left], given
        if word == _OPTION:
            given = next(left, None)
        elif word.startswith(f"{_OPTION}="):
            given = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, given
