# SPDX-License-Identifier: Apache-2.0
"""What needs attention, in words: of an enclave, and of the core."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ...schedulers.errors import Ejected
from ..output import human_ns
from .frame import EnclaveRow, Frame

#: A task that waits for longer than this, in ns, is worth a word. Policies lose their enclave after 15 s by default.
LONG_WAIT_NS = 1_000_000_000


@dataclass(frozen=True)
class Verdict:
    """``word`` is for a column; ``remedy`` is empty if all is well."""

    word: str
    text: str
    remedy: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing needs attention."""
        return not self.remedy


def verdict(row: EnclaveRow) -> Verdict:
    """The most serious thing about an enclave."""
    if row.fell_back:
        return Verdict("FIFO!", f"the built-in FIFO has replaced policy {row.policy}", "ghostbpf why")
    if row.agent is not None and row.agent.state == "gone":
        reason = row.agent.reason or "it was killed, or told to leave"
        return Verdict("NOAGENT!", f"its agent has gone: {reason}", f"ghostbpf run {row.policy} --enclave {row.id}")
    if row.agent is not None and row.agent.state == "timed_out":
        return Verdict("TIMEOUT!", "its agent has timed out, and the core decides", f"ghostbpf enclave show {row.id}")
    if row.longest_wait_ns > LONG_WAIT_NS:
        wait = human_ns(row.longest_wait_ns)
        return Verdict("WAITS!", f"a task has been waiting for {wait}", f"ghostbpf enclave show {row.id} --tasks")
    return Verdict("ok", "healthy")


def core_lines(frame: Frame) -> list[str]:
    """Why there is nothing to see: the core is detached, was ejected, or cannot be read. Empty if it is attached."""
    if frame.state == "attached":
        return []
    if frame.error is not None:
        lines = [f"the core cannot be read: {frame.error}"]
        return lines + ([f"  try: {frame.error.hint}"] if frame.error.hint else [])
    lines = ["no core is attached: there are no enclaves", "  try: sudo ghostbpf run biff -- make -j8"]
    if frame.state == "ejected" and frame.ejection is not None:
        lines = [*ejection_lines(frame.ejection), "  try: sudo ghostbpf why"]
    return lines


def ejection_lines(ejection: Ejected) -> list[str]:
    """When and why the kernel ejected a core."""
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ejection.at_ns / 1e9
    why = ejection.reason + (f": {ejection.message}" if ejection.message else "")
    return [f"the kernel ejected ghostbpf {ago:.0f} s ago, with all enclaves:", f"  {why}"]
