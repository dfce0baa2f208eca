# SPDX-License-Identifier: Apache-2.0
"""The errors between C text and a running BPF program.

    GhostError                     root of the errors that ghostbpf raises
     ├─ CompileError               the C does not compile          .diagnostics
     ├─ LintError                  it compiles to wrong code        .findings
     ├─ LinkError                  a map or kfunc has no target     .symbol
     ├─ VerifierError              the verifier rejects it          .function .log
     ├─ AttachError                it loads, but does not attach
     ├─ KernelUnsupported          the kernel lacks a feature       .feature
     ├─ PermissionMissing          the process lacks a capability   .capability
     └─ BpfError                   a bpf(2) call failed             .errno

Messages are lower case with the value in place; ``hint`` is the remedy.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from dataclasses import dataclass


class GhostError(Exception):
    """The root; ``hint`` is a one-line remedy or None, ``exit_status`` the command's exit status."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Diagnostic:
    """One compiler message; ``line`` and ``column`` count from 1, and are 0 if unknown."""

    file: str
    line: int
    column: int
    severity: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"


class CompileError(GhostError):
    """The C text does not compile; ``diagnostics`` point at the user's files, ``output`` is clang's whole output."""

    def __init__(self, source: str, diagnostics: tuple[Diagnostic, ...], output: str, *, hint: str | None = None):
        shown = "\n".join(str(d) for d in diagnostics if d.severity != "note") or output.strip()
        super().__init__(f"cannot compile {source}\n{shown}", hint=hint)
        self.diagnostics = diagnostics
        self.output = output


@dataclass(frozen=True)
class Finding:
    """One instruction that bcc miscompiled silently."""

    function: str
    instruction: int
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.function}: instruction {self.instruction}: {self.what}"


class LintError(GhostError):
    """The bytecode has references that bcc drops silently; ``findings`` names each."""

    def __init__(self, source: str, findings: tuple[Finding, ...]):
        super().__init__(
            f"{source} compiles to wrong code\n" + "\n".join(map(str, findings)),
            hint=findings[0].hint,
        )
        self.findings = findings


class LinkError(GhostError):
    """``symbol`` (a map, kfunc or constant) has no target."""

    def __init__(self, symbol: str, message: str, *, hint: str | None = None):
        super().__init__(message, hint=hint)
        self.symbol = symbol


# Lines after the reason in a verifier's log.
_LOG_TRAILER = ("processed ", "verification ", "cur state:", "old state:")

# A load that starts in one struct member and ends in the next.
_MERGED_LOAD = re.compile(
    r"access beyond the end of member (?P<member>\w+) \(mend:(?P<end>\d+)\) in struct (?P<struct>\w+)"
    r" with off (?P<offset>\d+) size (?P<size>\d+)"
)


class VerifierError(GhostError):
    """The verifier rejects ``function``; ``log`` is its whole log."""

    def __init__(self, function: str, errno: int, log: str, *, tail: int = 12):
        self.function, self.errno, self.log = function, errno, log
        lines = [line for line in log.splitlines() if line and not line.startswith(_LOG_TRAILER)]
        reason = lines[-1] if lines else os.strerror(errno)
        shown = "\n".join(f"  {line}" for line in lines[-tail:])
        super().__init__(f"the verifier rejects {function}: {reason}\n{shown}".rstrip(), hint=_verifier_hint(reason))


def _verifier_hint(reason: str) -> str | None:
    """The change of the C source that is known to fix what the verifier reports."""
    if merged := _MERGED_LOAD.search(reason):
        width = 8 * (int(merged["end"]) - int(merged["offset"]))
        return (
            f"LLVM reads {merged['member']} and the member behind it in one load of {merged['size']} bytes: "
            f"read it as *(volatile u{width} *)&p->{merged['member']}, p being the struct {merged['struct']}"
        )
    return None


class AttachError(GhostError):
    """A program or struct_ops was loaded but could not be attached."""


class KernelUnsupported(GhostError):
    """The running kernel lacks ``feature``."""

    def __init__(self, feature: str, message: str, *, hint: str | None = None):
        super().__init__(message, hint=hint)
        self.feature = feature


class PermissionMissing(GhostError):
    """The process lacks ``capability``."""

    def __init__(self, capability: str, action: str):
        super().__init__(f"cannot {action} without {capability}", hint="run it with sudo")
        self.capability = capability


class BpfError(GhostError):
    """The bpf(2) call behind ``action`` failed with ``errno``."""

    def __init__(self, action: str, errno: int, *, hint: str | None = None):
        super().__init__(f"cannot {action}: {os.strerror(errno)}", hint=hint or _HINTS.get(errno))
        self.errno = errno


_HINTS = {
    _errno.EPERM: "run it with sudo (loading BPF needs CAP_BPF, CAP_PERFMON and CAP_SYS_NICE)",
    _errno.ENOMEM: "free memory, or raise the locked-memory limit: ulimit -l unlimited",
    _errno.E2BIG: "the map is full: make it larger, or delete entries",
    _errno.ENOSPC: "the map or the file system is full",
}
