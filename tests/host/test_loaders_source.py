# SPDX-License-Identifier: Apache-2.0
"""Quoted includes are inlined once each, and every line keeps its file and number."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders import source
from ghostbpf.loaders.errors import CompileError

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files by keyword, with ``__`` for the dot; returns the path of ``main.c``."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", ".").replace("_in_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "main.c"

    return write


def origins(text: str) -> list[tuple[str, Path, int]]:
    """Each non-blank line of ``text``, with the file and line number that the preprocessor gives it."""
    found, path, line = [], Path("nowhere"), 0
    for content in text.split("\n"):
        if mark := re.match(r'#line (\d+) "(.*)"$', content):
            line, path = int(mark[1]), Path(mark[2])
            continue
        if content.strip():
            found.append((content, path, line))
        line += 1
    return found


def code_lines(text: str) -> list[str]:
    return [content for content, _, _ in origins(text)]


def test_file_without_includes_is_unchanged_but_for_its_mark(tree: Tree) -> None:
    main = tree(main__c="int a;\n\nint b;\n")
    assert source.read(main).text == f'#line 1 "{main}"\nint a;\n\nint b;\n\n'


def test_include_is_put_in_place(tree: Tree) -> None:
    main = tree(main__c='int before;\n#include "a.h"\nint after;\n', a__h="int a;\n")
    assert code_lines(source.read(main).text) == ["int before;", "int a;", "int after;"]


def test_every_line_keeps_its_file_and_number(tree: Tree) -> None:
    main = tree(
        main__c='int one;\n  #  include "a.h"   // the first\nint three;\n#include "b.h"\n\n\nint seven;',
        a__h='\n\n#include "sub/c.h"\nint four;\n#include "b.h"\nint six;\n',
        b__h="int b_one;\n",
        sub_in_c__h='#include "d.h"\nint c_two;\n',
        sub_in_d__h="\nint d_two;",
    )
    lines = origins(source.read(main).text)
    assert len(lines) == 8
    for content, path, line in lines:
        assert path.read_text().split("\n")[line - 1] == content


def test_file_included_twice_appears_once(tree: Tree) -> None:
    main = tree(
        main__c='#include "a.h"\n#include "b.h"\n#include "a.h"\n', a__h="int a;\n", b__h='#include "a.h"\nint b;\n'
    )
    assert code_lines(source.read(main).text) == ["int a;", "int b;"]


def test_one_file_under_two_spellings_appears_once(tree: Tree) -> None:
    main = tree(
        main__c='#include "sub/b.h"\n#include "a.h"\n#include "./sub/../a.h"\n',
        a__h="int a;\n",
        sub_in_b__h='#include "../a.h"\nint b;\n',
    )
    read = source.read(main)
    assert code_lines(read.text) == ["int a;", "int b;"]
    assert read.files == (main, main.parent / "sub/b.h", main.parent / "a.h")


def test_files_that_include_each_other_end(tree: Tree) -> None:
    main = tree(main__c='#include "a.h"\nint m;\n', a__h='#include "main.c"\n#include "a.h"\nint a;\n')
    assert code_lines(source.read(main).text) == ["int a;", "int m;"]


def test_system_includes_and_comments_are_left_alone(tree: Tree) -> None:
    text = '#include <linux/bpf.h>\n// #include "gone.h"\n'
    assert code_lines(source.read(tree(main__c=text)).text) == text.splitlines()


def test_sibling_comes_before_the_bpf_directory(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bpf = tmp_path_factory.mktemp("bpf")
    (bpf / "both.h").write_text("int both_of_bpf;\n")
    (bpf / "only.h").write_text("int only_of_bpf;\n")
    monkeypatch.setattr(source, "BPF_DIR", bpf)
    main = tree(main__c='#include "both.h"\n#include "only.h"\n', both__h="int both_of_sibling;\n")
    read = source.read(main)
    assert code_lines(read.text) == ["int both_of_sibling;", "int only_of_bpf;"]
    assert read.files == (main, main.parent / "both.h", bpf / "only.h")


def test_sibling_means_beside_the_including_file(tree: Tree) -> None:
    main = tree(
        main__c='#include "sub/a.h"\n', sub_in_a__h='#include "x.h"\n', sub_in_x__h="int near;\n", x__h="int far;\n"
    )
    assert code_lines(source.read(main).text) == ["int near;"]


def test_missing_include_points_at_the_including_line(tree: Tree) -> None:
    main = tree(main__c='int a;\n#include "a.h"\n', a__h='\n\nint b;\n#include "gone.h"\n')
    with pytest.raises(CompileError, match=r"gone\.h: No such file") as error:
        source.read(main)
    (found,) = error.value.diagnostics
    assert (Path(found.file), found.line, found.severity) == (main.parent / "a.h", 4, "error")


def test_missing_source_is_a_compile_error(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"cannot read .*/gone\.c: No such file"):
        source.read(tmp_path / "gone.c")


def test_include_of_a_directory_is_a_compile_error(tree: Tree) -> None:
    main = tree(main__c='#include "sub"\n', sub_in_a__h="int a;\n")
    with pytest.raises(CompileError, match="Is a directory") as error:
        source.read(main)
    assert error.value.diagnostics[0].line == 1


def test_relative_path_reads_like_the_absolute_one(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    main = tree(main__c='#include "a.h"\n', a__h="int a;\n")
    monkeypatch.chdir(main.parent)
    assert source.read("main.c") == source.read(main)


def test_code_is_the_text_without_comments(tree: Tree) -> None:
    main = tree(main__c='int a; /* b()\n c() */ int d; // e()\nint f;\n#include "g.h"\n', g__h="/* h() */ int i;\n")
    code = source.read(main).code
    assert not re.search(r"\b[bceh]\(\)", code)
    for kept in ("int a;", "int d;", "int f;", "int i;"):
        assert kept in code
