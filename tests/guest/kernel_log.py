# SPDX-License-Identifier: Apache-2.0
"""The kernel's log during a test, and the lines in it that tell of an error."""

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
    """The kernel's log since the object was made."""

    def __init__(self) -> None:
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._file, 0, os.SEEK_END)
        (_TRACING / "events/sched_ext/sched_ext_dump/enable").write_text("1")
        (_TRACING / "trace").write_text("")
        self._expected: list[str] = []
        self._lines: list[str] = []

    def expect(self, pattern: str) -> None:
        """Accept lines that match the regular expression ``pattern`` in this test."""
        self._expected.append(pattern)

    def lines(self) -> list[str]:
        """Every line."""
        while True:
            try:
                record = os.read(self._file, 8192).decode(errors="replace")
            except BlockingIOError:
                return self._lines
            except BrokenPipeError:  # overwritten before it was read: the next read returns the oldest line left
                continue
            self._lines.append(record.partition(";")[2].partition("\n")[0])

    def trouble(self) -> list[str]:
        """The unexpected lines that tell of an error."""
        found = [line for line in self.lines() if _TROUBLE.search(line)]
        return [line for line in found if not any(re.search(pattern, line) for pattern in self._expected)]

    def dump(self) -> str:
        """The kernel's dump of an ejected scheduler: its CPUs and the tasks that wait for them."""
        return "".join(re.findall(r"sched_ext_dump: (.*\n)", (_TRACING / "trace").read_text(errors="replace")))

    def close(self) -> None:
        """Close the log."""
        os.close(self._file)
