# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf why``: why the kernel ejected the core, and why the built-in FIFO has replaced a policy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from ..loaders.errors import GhostError
from ..schedulers import core
from ..schedulers.eject import Explanation, explain
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.errors import Ejected
from ..schedulers.registry import POLICIES
from ..schedulers.stay_alive import Fallback
from .fallback import remedy
from .output import json_option, printable

_OTHERS = 5


@click.command(
    epilog="\b\nExamples:\n  sudo ghostbpf why\n  sudo ghostbpf why --json\n  sudo ghostbpf why --dump >dump.txt"
)
@click.option("--dump", is_flag=True, help="Print the kernel's whole dump of the last ejection.")
@json_option
def command(dump: bool, as_json: bool) -> None:
    """Say why the kernel last ejected ghostbpf, and why the built-in FIFO has replaced policies.

    Which task waited, on which queue, for how long, whose decision that was, and the remedy. The kernel's reasons are
    kept until the next boot.
    """
    ejected = core.last_eject()
    if dump:
        if ejected is None:
            raise GhostError("the kernel has not ejected ghostbpf since boot", hint="ghostbpf why")
        click.echo(ejected.dump)
        return
    replaced = list(_replaced())
    if as_json:
        for document in _documents(ejected, replaced):
            click.echo(json.dumps(document))
        return
    texts = [_ejection(ejected)] if ejected is not None else []
    texts += [_replacement(enclave, why) for enclave, why in replaced]
    click.echo("\n\n".join(texts) or _NOTHING)


_NOTHING = "the kernel has not ejected ghostbpf since boot, and no enclave has lost its policy"


def _replaced() -> Iterator[tuple[Enclave, Fallback]]:
    """The enclaves of which the core has replaced a policy, even if they have another by now."""
    try:
        enclaves = Enclaves.open()
    except Ejected:
        return
    for enclave in enclaves or ():
        if (why := enclave.last_fallback) is not None:
            yield enclave, why


def _documents(ejected: Ejected | None, replaced: list[tuple[Enclave, Fallback]]) -> Iterator[dict[str, Any]]:
    if ejected is not None:
        explanation = explain(ejected.reason, ejected.message, ejected.dump, POLICIES)
        yield {"event": "ejected", "ago": round(_ago(ejected), 1), **vars(explanation)}
    for enclave, why in replaced:
        yield {
            "event": "replaced",
            "enclave": enclave.id,
            **why.document(),
            "still": enclave.fallback is not None,
            "remedy": remedy(enclave.id, why),
        }


def _ago(ejected: Ejected) -> float:
    """Seconds since the ejection."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ejected.at_ns / 1e9


def _ejection(ejected: Ejected) -> str:
    why = explain(ejected.reason, ejected.message, ejected.dump, POLICIES)
    head = f"the kernel ejected ghostbpf {_ago(ejected):.0f} s ago, with all enclaves: {why.reason}"
    return "\n".join([printable(head), *(printable(line) for line in _lines(why))])


def _lines(why: Explanation) -> Iterator[str]:
    if why.task is not None:
        where = f" of enclave {why.enclave} (policy {why.policy})" if why.enclave else ""
        yield f"  task:     {why.task} ({why.tid}){where} waited for {why.waited:.1f} s"
    elif why.message:
        yield f"  message:  {why.message}"
    if why.queue is not None:
        yield f"  queue:    {why.queue}"
    yield f"  decision: {why.decision}"
    for number, cpu in enumerate(why.cpus):
        yield ("  CPUs:     " if not number else "            ") + cpu
    for number, other in enumerate(why.others[:_OTHERS]):
        yield ("  waiting:  " if not number else "            ") + other
    if len(why.others) > _OTHERS:
        yield f"            and {len(why.others) - _OTHERS} more"
    yield f"  try: {why.remedy}"


def _replacement(enclave: Enclave, why: Fallback) -> str:
    now = "" if enclave.fallback is not None else f"; policy {enclave.policy} is live by now"
    decision = f"policy {why.policy}" + (", or its agent" if why.has_agent else "")
    lines = [
        f"the built-in FIFO replaced policy {why.policy} of enclave {enclave.id} {why.ago:.0f} s ago{now}",
        f"  task:     {why.comm} ({why.tid}) waited for {why.waited:.1f} s",
        f"  queue:    {why.where.removeprefix('on ')}",
        f"  decision: {decision}",
        f"  CPUs:     CPU {why.cpu} {why.meanwhile}",
        f"  try: {remedy(enclave.id, why)}",
    ]
    return "\n".join(printable(line) for line in lines)
