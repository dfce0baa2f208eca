# SPDX-License-Identifier: Apache-2.0
"""The option ``--runnable-timeout``, and what commands print when the built-in FIFO has replaced a policy."""

from __future__ import annotations

from typing import Any

import click

from ..schedulers import stay_alive
from ..schedulers.stay_alive import Fallback


def _parse(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """The timeout in ns; None without the option."""
    try:
        return None if text is None else stay_alive.timeout_ns(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


_HELP = (
    "If a task waits for longer although a CPU is available, the built-in FIFO replaces the policy; "
    f"{stay_alive.LEAST_S:g}s to {stay_alive.MOST_S:g}s, or off.  [default: {stay_alive.DEFAULT}]"
)
_SETTINGS: dict[str, Any] = {"callback": _parse, "metavar": "TIME", "help": _HELP}

#: The option, for commands that have a list of options, and as a decorator.
runnable_timeout = click.Option(["--runnable-timeout"], **_SETTINGS)
runnable_timeout_option = click.option("--runnable-timeout", **_SETTINGS)


def fallback_lines(id: int, why: Fallback) -> str:
    """Two lines: that the FIFO has replaced the policy of enclave ``id``, and the remedy."""
    return f"error: enclave {id}: {why}\n  try: {remedy(id, why)}"


def remedy(id: int, why: Fallback) -> str:
    """What to do when the FIFO has replaced a policy."""
    repair = (
        "correct its enqueue(), which must insert each task"
        if not why.queue
        else "correct its dispatch(), which must serve each queue that it inserts into, and limit its slices"
    )
    return f"{repair}; for another policy: ghostbpf run POLICY --enclave {id}"
