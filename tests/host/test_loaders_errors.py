# SPDX-License-Identifier: Apache-2.0
"""The messages and the data of errors."""

from __future__ import annotations

import errno
import inspect

import pytest
from ghostbpf.loaders import errors
from ghostbpf.loaders._libbpf import check
from ghostbpf.loaders.errors import BpfError, CompileError, Diagnostic, Finding, GhostError, LintError, VerifierError


def test_every_error_is_a_ghost_error_and_in_the_tree() -> None:
    found = {name for name, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    assert all(issubclass(getattr(errors, name), GhostError) for name in found)
    assert found - {"GhostError"} == {
        line.split("─ ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "─ " in line
    }


def test_compile_error_shows_its_diagnostics_without_notes() -> None:
    wrong = Diagnostic("a.c", 3, 7, "error", "no such thing")
    note = Diagnostic("a.h", 1, 2, "note", "declared here")
    error = CompileError("a.c", (wrong, note), "all that clang said", hint="drop it")
    assert str(error) == "cannot compile a.c\na.c:3:7: error: no such thing"
    assert error.diagnostics == (wrong, note)
    assert (error.output, error.hint) == ("all that clang said", "drop it")


def test_compile_error_without_diagnostics_shows_the_compilers_output() -> None:
    assert str(CompileError("a.c", (), "\nLLVM ERROR: out of luck\n")) == "cannot compile a.c\nLLVM ERROR: out of luck"


def test_lint_error_shows_each_finding_and_the_first_hint() -> None:
    error = LintError("a.c", (Finding("f", 3, "is wrong", "mend f"), Finding("g", 0, "is worse", "mend g")))
    assert str(error).splitlines()[1:] == ["f: instruction 3: is wrong", "g: instruction 0: is worse"]
    assert error.hint == "mend f"


def test_verifier_error_without_a_log_gives_the_reason_by_number() -> None:
    assert str(VerifierError("f", errno.E2BIG, "")) == "the verifier rejects f: Argument list too long"


def test_long_verifier_log_is_kept_whole_and_shown_in_part() -> None:
    log = "".join(f"{n}: (b7) r0 = {n}\n" for n in range(500)) + "R1 is a mess\nprocessed 500 insns\n"
    error = VerifierError("f", errno.EACCES, log)
    assert error.log == log
    assert str(error).splitlines()[0] == "the verifier rejects f: R1 is a mess"
    assert len(str(error).splitlines()) == 13


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EPERM, "sudo"), (errno.ENOMEM, "ulimit -l"), (errno.ENOSPC, "full")]
)
def test_failed_call_has_a_hint(number: int, hint: str) -> None:
    with pytest.raises(BpfError, match="cannot make a map: ") as error:
        check(-number, "make a map")
    assert error.value.errno == number
    assert hint in (error.value.hint or "")


def test_call_that_worked_gives_its_result() -> None:
    assert [check(result, "count") for result in (0, 7)] == [0, 7]
