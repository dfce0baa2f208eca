# SPDX-License-Identifier: Apache-2.0
"""C declarations are parsed once: what is kept of them on disk has the same types, and a bad copy is replaced."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cffi
import pytest
from ghostbpf.loaders.declarations import declare

TEXT = """
#define LIMIT 300
enum colour { RED = 7, BLUE };
struct inner { uint16_t small; uint64_t values[4]; };
struct outer { char name[32]; struct inner *first; struct inner all[2]; };
int abs(int);
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def check() -> None:
    """The declarations are those that cffi parses."""
    ffi, known = declare(TEXT), cffi.FFI()
    known.cdef(TEXT)
    for name in ("struct inner", "struct outer"):
        assert ffi.sizeof(name) == known.sizeof(name)
        fields = [[(member, field.offset) for member, field in one.typeof(name).fields] for one in (ffi, known)]
        assert fields[0] == fields[1]
    library = ffi.dlopen(None)
    assert (library.abs(-5), library.LIMIT, library.BLUE) == (5, 300, 8)


def test_second_time_nothing_is_parsed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setitem(sys.modules, "cffi", None)
    with pytest.raises(ImportError):
        declare("int labs(int);")
    assert declare(TEXT).sizeof("struct outer") == 120


@pytest.mark.parametrize("damage", [b"", b"ghostbpf object 3\n", b"x" * 400])
def test_damaged_copy_is_replaced(home: Path, damage: bytes) -> None:
    check()
    [entry] = (home / "ghostbpf" / "declarations").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage)
    check()
    assert entry.read_bytes() == good


def test_without_a_place_to_keep_them_they_are_parsed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    for _ in range(2):
        check()


def test_without_space_for_temporary_files_nothing_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home / "gone"))
    for _ in range(2):
        check()
    assert not (home / "ghostbpf" / "declarations").exists()
