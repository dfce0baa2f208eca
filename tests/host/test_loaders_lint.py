# SPDX-License-Identifier: Apache-2.0
"""Code that bcc drops silently is refused by name; similar but valid code is not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders import lint
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import Finding, LintError
from ghostbpf.loaders.object import Function, Object, Relocation

LD_IMM64, CALL, MOV, EXIT = 0x18, 0x85, 0xB7, 0x95

NO_ADDRESS, NO_TARGET = "has no address", "has no target"


def check(*insns: tuple[int, int, int], known: tuple[int, ...] = ()) -> list[int]:
    """The instructions that lint reports, of (opcode, source register, immediate)."""
    code = b"".join(struct.pack("<BBhi", opcode, src << 4, 0, imm) for opcode, src, imm in insns)
    return [f.instruction for f in lint.check(Function("f", code, tuple(Relocation(n, "map", "m") for n in known)))]


@pytest.fixture(scope="module")
def findings(bcc: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """The first finding of each function of a source with every forbidden construct and some allowed ones."""
    path: Path = tmp_path_factory.mktemp("source") / "wrong.bpf.c"
    path.write_text(
        """
        int counter;
        static int last;
        static u64 table[4] = {1, 2, 3, 9};
        static u32 bins[4];
        extern int outside(int) asm("outside");
        static __attribute__((__noinline__)) int away(u64 x) { return x * 3; }

        int global(u64 *ctx) { return ++counter; }
        int second_global(u64 *ctx) { last += ctx[0]; return last; }
        int literal(u64 *ctx) { const char *text = "abc"; return text[ctx[0] & 3]; }
        int static_array(u64 *ctx) { return table[ctx[0] & 3]; }
        int second_array(u64 *ctx) { return bins[ctx[0] & 3]++; }
        int constant_array(u64 *ctx) { u64 local[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}; return local[ctx[0] & 7]; }
        int external(u64 *ctx) { return ctx[0] + outside(3); }
        int not_inlined(u64 *ctx) { return away(ctx[0]) + 1; }

        static int helper(u64 x) { return x * 3; }
        int inlined(u64 *ctx) { return helper(ctx[0]) + 1; }
        int zeroes(u64 *ctx)
        {
            volatile u64 zero = 0ULL, high = 0x100000000ULL, top = 0x80000000ULL, all = ~0ULL;
            char text[] = "a local array";
            return ctx[0] == zero || ctx[1] == high || ctx[2] == top || ctx[3] == all || text[ctx[4] & 7] == 0;
        }
        """
    )
    with pytest.raises(LintError) as error:
        compile(path)
    assert "wrong.bpf.c" in str(error.value)
    found: dict[str, Finding] = {}
    for finding in error.value.findings:
        assert str(finding) in str(error.value)
        found.setdefault(finding.function, finding)
    return found


@pytest.mark.parametrize(
    "function", ["global", "second_global", "literal", "static_array", "second_array", "constant_array"]
)
def test_data_without_an_address_is_found(findings: dict[str, Finding], function: str) -> None:
    assert NO_ADDRESS in findings[function].what
    assert "local array" in findings[function].hint


@pytest.mark.parametrize("function", ["external", "not_inlined"])
def test_call_without_a_target_is_found(findings: dict[str, Finding], function: str) -> None:
    assert NO_TARGET in findings[function].what
    assert "__always_inline" in findings[function].hint


@pytest.mark.parametrize("function", ["inlined", "zeroes"])
def test_sound_function_has_no_finding(findings: dict[str, Finding], function: str) -> None:
    assert function not in findings


def test_refused_source_stays_refused(bpf_source: Callable[..., Path]) -> None:
    path = bpf_source("int counter; int f(u64 *ctx) { return counter++; }")
    for _ in range(2):
        with pytest.raises(LintError) as error:
            compile(path)
        assert error.value.hint


def test_finding_names_the_instruction() -> None:
    assert check((MOV, 0, 0), (LD_IMM64, 0, 0), (0, 0, 0), (CALL, 0, 5), (CALL, 1, -1), (EXIT, 0, 0)) == [1, 4]


def test_reference_that_will_be_bound_is_sound() -> None:
    assert check((LD_IMM64, 0, 0), (0, 0, 0), (CALL, 1, -1), known=(0, 2)) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-(1 << 31), 0), (-1, -1), (5, 7)])
def test_constant_too_big_for_a_mov_is_sound(low: int, high: int) -> None:
    assert check((LD_IMM64, 0, low), (0, 0, high)) == []


@pytest.mark.parametrize("offset", [0, 16, (1 << 31) - 1])
def test_offset_into_a_lost_section_is_found(offset: int) -> None:
    assert check((LD_IMM64, 0, offset), (0, 0, 0)) == [0]


def test_map_load_is_sound() -> None:
    assert check((LD_IMM64, 1, 0), (0, 0, 0)) == []


def test_all_functions_are_checked() -> None:
    bad = struct.pack("<BBhi", CALL, 1 << 4, 0, -1)
    obj = Object("x.bpf.c", {n: Function(n, bad, ()) for n in ("a", "b")}, {}, b"")
    with pytest.raises(LintError) as error:
        lint.lint(obj)
    assert [f.function for f in error.value.findings] == ["a", "b"]
    assert error.value.hint == error.value.findings[0].hint
