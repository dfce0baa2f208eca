# SPDX-License-Identifier: Apache-2.0
"""What the kernel's log says while a test runs, and which of it means trouble."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TRACING = Path("/sys/kernel/tracing")

_TROUBLE = re.compile(
    r"BUG|WARNING:|Oops|general protection|INFO: task .* blocked|rcu: .*(stall|detected)"
    r"|sched_ext: .*(error|stall|failed to run|disabled \((?!unregistered from user space))",
)


class KernelLog:
    """What the kernel said since it was made."""

    def __init__(self) -> None:
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._file, 0, os.SEEK_END)
        (_TRACING / "events/sched_ext/sched_ext_dump/enable").write_text("1")
        (_TRACING / "trace").write_text("")
        self._expected: list[str] = []
        self._lines: list[str] = []

    def expect(self, pattern: str) -> None:
        """Lines that match the regular expression ``pattern`` are no trouble in this test."""
        self._expected.append(pattern)

    def lines(self) -> list[str]:
        """All of it, a line each."""
        while True:
            try:
                record = os.read(self._file, 8192).decode(errors="replace")
            except BlockingIOError:
                return self._lines
            except BrokenPipeError:  # it was overwritten before we read it: what is left starts here
                continue
            self._lines.append(record.partition(";")[2].partition("\n")[0])

    def trouble(self) -> list[str]:
        """The lines that no test should cause."""
        found = [line for line in self.lines() if _TROUBLE.search(line)]
        return [line for line in found if not any(re.search(pattern, line) for pattern in self._expected)]

    def dump(self) -> str:
        """What the kernel had to say when it threw a scheduler out: its CPUs, and who waits for them."""
        return "".join(re.findall(r"sched_ext_dump: (.*\n)", (_TRACING / "trace").read_text(errors="replace")))

    def close(self) -> None:
        """Stop listening."""
        os.close(self._file)
