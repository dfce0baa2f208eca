# SPDX-License-Identifier: Apache-2.0
"""Compiling in a child process: the errors that a user sees, and that the caller's process is unaffected."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import CompileError, Diagnostic, GhostError
from ghostbpf.loaders.link import Module, Target

Source = Callable[..., Path]

GOOD = "int good(u64 *ctx) { return 7; }\n"


def errors_of(path: Path) -> tuple[Diagnostic, ...]:
    with pytest.raises(CompileError) as error:
        compile(path)
    assert str(path) in str(error.value)
    for diagnostic in error.value.diagnostics:
        assert diagnostic.severity == "note" or str(diagnostic) in str(error.value)
    return error.value.diagnostics


def test_syntax_error_is_where_the_user_wrote_it(bpf_source: Source) -> None:
    path = bpf_source("// one\n// two\nint f(u64 *ctx)\n{\n\treturn 0\n}\n")
    (found,) = errors_of(path)
    assert (found.file, found.line, found.severity) == (str(path), 5, "error")
    assert found.column == len("\treturn 0") + 1
    assert "';'" in found.message


def test_error_inside_an_include_is_where_the_user_wrote_it(bpf_source: Source) -> None:
    header = bpf_source("struct pair { u32 a; };\nstatic u32 first(struct pair *p) { return p->b; }\n", "pair.h")
    (found, *_) = errors_of(bpf_source('#define X 1\n#include "pair.h"\nint f(u64 *ctx) { return 0; }\n'))
    assert (found.file, found.line) == (str(header), 2)
    assert "'b'" in found.message


def test_error_after_an_include_is_where_the_user_wrote_it(bpf_source: Source) -> None:
    bpf_source("struct pair { u32 a; };\n\n\n", "pair.h")
    path = bpf_source('#include "pair.h"\n\nint f(u64 *ctx) { return missing; }\n')
    (found, *_) = errors_of(path)
    assert (found.file, found.line) == (str(path), 3)


def test_all_errors_are_reported_and_no_warnings(bpf_source: Source) -> None:
    found = errors_of(bpf_source("int f(u64 *ctx) { return a; }\n#warning careful\nint g(u64 *ctx) { return b; }\n"))
    assert [(d.line, d.severity) for d in found] == [(1, "error"), (3, "error")]


def test_warning_is_no_error(bpf_source: Source) -> None:
    assert compile(bpf_source("#warning careful\nint f(u64 *ctx) { int unused = 3; return 0; }\n")).functions


def test_function_the_kernel_lacks_has_the_guard_as_hint(bpf_source: Source) -> None:
    with pytest.raises(CompileError) as error:
        compile(bpf_source("int f(u64 *ctx) { return scx_bpf_no_such_kfunc(ctx[0]); }"))
    assert "#ifdef HAVE_scx_bpf_no_such_kfunc" in (error.value.hint or "")


def test_missing_include_is_a_diagnostic_of_the_includer(bpf_source: Source) -> None:
    path = bpf_source('int a;\n#include "gone.h"\n')
    (found,) = errors_of(path)
    assert (found.file, found.line) == (str(path), 2)


def test_compiler_that_dies_leaves_its_caller_alive(bpf_source: Source) -> None:
    # BPF before v4 has no signed division: LLVM 14 aborts, later versions report an error.
    path = bpf_source("s64 f(s64 *ctx) { return ctx[0] / ctx[1]; }", "div.bpf.c")
    with pytest.raises(CompileError, match=r"div\.bpf\.c") as error:
        compile(path)
    assert "sign" in error.value.output.lower()
    if not error.value.diagnostics:
        assert "SIGABRT" in str(error.value)
    assert compile(bpf_source(GOOD)).functions


def test_compiler_prints_nothing(bpf_source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    compile(bpf_source("#warning careful\n" + GOOD))
    with pytest.raises(CompileError):
        compile(bpf_source("int f(u64 *ctx) { return missing; }"))
    assert capfd.readouterr() == ("", "")


def test_working_directory_and_environment_stay(
    bpf_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    bpf_source(GOOD)
    compile("test.bpf.c")
    assert Path.cwd() == tmp_path
    assert dict(os.environ) == before


def test_no_scratch_files_or_children_are_left(
    bpf_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = _children()
    compile(bpf_source(GOOD))
    with pytest.raises(CompileError):
        compile(bpf_source("int f(u64 *ctx) { return missing; }", "bad.bpf.c"))
    assert list(scratch.iterdir()) == []
    assert _children() == before


def _children() -> set[str]:
    """The pids of this process' children, zombies too; multiprocessing may have started one that stays."""
    paths = Path("/proc/self/task").glob("*/children")
    return {pid for path in paths for pid in path.read_text().split()}


def test_compiler_runs_in_another_process(bpf_source: Source) -> None:
    # LLVM is 30 MB that are never freed.
    compile(bpf_source(GOOD))
    assert not re.search(r"libbcc|libclang|libLLVM", Path("/proc/self/maps").read_text())


def test_same_source_gives_the_same_bytes(bpf_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bpf_source("BPF_HASH(a, u32, u64, 4); BPF_ARRAY(b, u64, 4); int f(u64 *c) { a.increment(1); return 0; }")
    results = set()
    for cache in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        results.add(compile(path).to_bytes())
    assert len(results) == 1


def test_defines_change_the_program(bpf_source: Source) -> None:
    path = bpf_source("int f(u64 *ctx) { return ANSWER; }")
    for answer in (42, -42, "6 * 7"):
        with Module(compile(path, {"ANSWER": answer})).load("f", Target.syscall()) as program:
            assert abs(program.run()[0]) == 42


def test_text_the_caller_has_not_flushed_is_written_once(bpf_source: Source) -> None:
    script = (
        "import sys; from ghostbpf.loaders.compiler import compile;"
        "sys.stdout.write('once '); print(*compile(sys.argv[1]).functions)"
    )
    done = subprocess.run([sys.executable, "-c", script, bpf_source(GOOD)], capture_output=True, text=True, check=True)
    assert done.stdout == "once good\n"


def test_capability_that_compiling_takes_is_named(bpf_source: Source, tmp_path: Path) -> None:
    path = bpf_source("BPF_HASH(seen, u32, u64);\nint f(u64 *ctx) { u32 key = 0; seen.delete(&key); return 0; }\n")
    script = f"from ghostbpf.loaders import compile; compile({str(path)!r})"
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c", script],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"PermissionMissing: cannot compile {path} without CAP_SYS_ADMIN" in done.stderr


def test_disk_that_is_full_is_named(bpf_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("tempfile.tempdir", "/proc")  # where no directory can be made
    with pytest.raises(GhostError, match=r"cannot compile: .*/proc/") as error:
        compile(bpf_source(GOOD))
    assert error.value.hint == "free some space in /proc, or set TMPDIR"
