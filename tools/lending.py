# SPDX-License-Identifier: Apache-2.0
"""The options that let an enclave lend and borrow CPUs: for ``ghostbpf run`` and ``ghostbpf enclave set``."""

from __future__ import annotations

from typing import Any

import click

from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.enclave_view import EnclaveView
from ..schedulers.errors import NoSuchEnclave
from ..schedulers.lending import RECLAIM, check_permitted
from .output import human_ns

_HELP = {
    "lend": "Let tasks of enclaves that borrow use idle CPUs.",
    "borrow": "Use idle CPUs of enclaves that lend, too.",
    "reclaim": "When it gets back a CPU that it lent: at once, or at a tick.",
}

_EXAMPLES = """\b
Examples:
  sudo ghostbpf enclave set 1 --lend yes       lend its idle CPUs
  sudo ghostbpf enclave set 2 --borrow yes     use them in enclave 2
  sudo ghostbpf enclave set 1 --reclaim tick   no preemption by lenders
  sudo ghostbpf enclave set 1 --lend no
"""


def options() -> list[click.Option]:
    """``--lend``, ``--borrow`` and ``--reclaim``; the value of each is None if it is not given."""
    values = {"lend": ("yes", "no"), "borrow": ("yes", "no"), "reclaim": RECLAIM}
    return [click.Option([f"--{name}"], type=click.Choice(values[name]), help=text) for name, text in _HELP.items()]


def change(enclave: Enclave, lend: str | None, borrow: str | None, reclaim: str | None) -> None:
    """Set what the options name, under the lock on changes. Raises NoSuchEnclave, and what loading raises."""
    if lend is borrow is reclaim is None:
        return
    check_permitted()  # CAP_SYS_ADMIN includes what the lock needs, and is the one to name
    with Enclaves.change() as enclaves:
        if enclaves is None or enclave not in enclaves:
            raise NoSuchEnclave(enclave.id)
        enclaves.get(enclave.id).set_lending(lend=_flag(lend), borrow=_flag(borrow), reclaim=reclaim)


def _flag(text: str | None) -> bool | None:
    return None if text is None else text == "yes"


def document(enclave: EnclaveView) -> dict[str, Any]:
    """What ``--json`` shows."""
    return vars(enclave.lending)


def lines(enclave: EnclaveView) -> dict[str, str]:
    """What people see, by its name; empty if the enclave never lent or borrowed."""
    n = enclave.counters()
    if not (enclave.lending.bits or n.lent_ns or n.borrowed_ns):
        return {}
    return {
        "lending": str(enclave.lending),
        "lent": f"{human_ns(n.lent_ns)}, {n.reclaims} reclaims",
        "borrowed": f"{human_ns(n.borrowed_ns)}, {n.borrowings} turns",
    }


@click.command("set", epilog=_EXAMPLES)
@click.argument("id", type=int)
def command(id: int, lend: str | None, borrow: str | None, reclaim: str | None) -> None:
    """Change the options of enclave ID while its tasks run; what is not given stays as it is.

    With --lend yes, waiting tasks of enclaves that borrow run on this enclave's idle CPUs. They leave when a task of
    this enclave needs the CPU: at once, or, with --reclaim tick, at the next tick of the kernel.
    """
    if lend is borrow is reclaim is None:
        raise click.UsageError("name at least one option to change")
    enclave = Enclaves.find(id)
    before = enclave.lending
    change(enclave, lend, borrow, reclaim)
    after = enclave.lending
    click.echo(f"enclave {id}: {before} -> {after}" if before != after else f"enclave {id}: {after}, as before")


command.params += options()
