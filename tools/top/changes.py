# SPDX-License-Identifier: Apache-2.0
"""The changes that keys make: each is a command of ghostbpf, which the screen shows before it runs it.

The commands have the checks, the lock, the warnings and the remedies; the screen adds none of its own.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from dataclasses import dataclass

from ...schedulers.agents import AgentPolicySpec
from ...schedulers.policy import Policy


@dataclass(frozen=True)
class Change:
    """A command of ghostbpf, by its ``arguments``."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(("ghostbpf", *self.arguments))


def swap(enclave: int, policy: Policy) -> Change:
    """Give ``enclave`` another policy; one with an agent gets an agent that stays."""
    if isinstance(policy, AgentPolicySpec):
        return Change(("run", policy.name, "--enclave", str(enclave), "--keep", "--", "true"))
    return Change(("enclave", "swap", str(enclave), policy.name))


def resize(enclave: int, cpus: str) -> Change:
    """Change the CPUs of ``enclave``, as LIST, +LIST or -LIST."""
    return Change(("enclave", "resize", str(enclave), "--cpus", cpus))


def add(enclave: int, pids: str) -> Change:
    """Move processes, numbers between spaces, into ``enclave``."""
    return Change(("enclave", "add", str(enclave), *pids.split()))


def remove(enclave: int, pid: int) -> Change:
    """Move a process out of ``enclave``."""
    return Change(("enclave", "rm", str(enclave), str(pid)))


def destroy(enclave: int) -> Change:
    """Destroy ``enclave``."""
    return Change(("enclave", "destroy", str(enclave)))


async def run(change: Change) -> tuple[int, str]:
    """Run a change; returns its exit status and all that it printed."""
    # A file: an agent that stays keeps its standard streams, and a pipe would have no end before it.
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ghostbpf.tools.cli", *change.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Neither Ctrl-C nor the end of the terminal reaches an agent.
            start_new_session=True,
        )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            # The screen ends. The command has what it needs to undo what it had begun.
            if process.returncode is None:
                process.terminate()
            raise
        output.seek(0)
        return status, output.read().decode(errors="replace").strip()
