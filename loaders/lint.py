# SPDX-License-Identifier: Apache-2.0
"""Finds code that bcc miscompiles silently, before the verifier rejects it for another reason.

bcc resolves no BPF relocations: a symbol in the C that is not a map becomes a small number or minus one.
"""

from __future__ import annotations

from .errors import Finding, LintError
from .object import CALL, LD_IMM64, Function, Object, instructions
from .uapi import BPF_PSEUDO_CALL

# clang loads a number that fits an int with a mov: an ld_imm64 below this is an offset into a section that bcc dropped.
_MIN_CONSTANT = 1 << 31


def lint(obj: Object) -> None:
    """Raise LintError if a function of ``obj`` has lost a reference."""
    findings = tuple(finding for function in obj.functions.values() for finding in check(function))
    if findings:
        raise LintError(obj.source, findings)


def check(function: Function) -> list[Finding]:
    """The instructions of ``function`` that lost their reference."""
    known = {relocation.instruction for relocation in function.relocations}
    findings = []
    for insn in instructions(function.code):
        if insn.at in known:
            continue
        if insn.opcode == LD_IMM64 and insn.src == 0 and insn.imm64 < _MIN_CONSTANT:
            findings.append(
                Finding(
                    function.name,
                    insn.at,
                    "a global variable, static array or string constant has no address",
                    'keep it in a map, pass it as a define, or make it a local array: char text[] = "…"',
                )
            )
        elif insn.opcode == CALL and insn.src == BPF_PSEUDO_CALL:
            findings.append(
                Finding(
                    function.name,
                    insn.at,
                    "a call has no target: the function is extern or noinline",
                    "make it static __always_inline; for a kernel function, check that this kernel has it",
                )
            )
    return findings
