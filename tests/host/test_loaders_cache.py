# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled objects: a hit runs no compiler, and a bad cache costs only time."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders import cache
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.object import Object

Source = Callable[..., Path]

TEXT = "int f(u64 *ctx) { return 1; }\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if not path.is_dir() and path.parent.name not in ("declarations", "types")]


def compiler_ran(path: Path, **defines: int | str) -> bool:
    """Whether compile() started a child: the page faults of this process's ended children have changed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    compile(path, defines)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt != before


def test_second_time_runs_no_compiler(bpf_source: Source) -> None:
    path = bpf_source(TEXT)
    assert compiler_ran(path)
    assert not compiler_ran(path)


def test_hit_gives_what_the_compiler_gave(bpf_source: Source) -> None:
    path = bpf_source("BPF_HASH(counts, u32, u64, 4);\nint f(u64 *ctx) { counts.increment(1); return 1; }\n")
    assert compile(path) == compile(path)
    assert compile(path).maps


def test_hit_reads_no_kernel_types(bpf_source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bpf_source(TEXT)
    compile(path)
    monkeypatch.setattr("ghostbpf.loaders.compilation.Btf", None)
    monkeypatch.setattr("os.fork", None)
    assert compile(path).functions


def test_changed_source_is_compiled_again(bpf_source: Source) -> None:
    path = bpf_source(TEXT)
    compile(path)
    path.write_text(TEXT.replace("1", "2"))
    assert compiler_ran(path)


def test_changed_include_is_compiled_again(bpf_source: Source) -> None:
    header = bpf_source("#define ANSWER 1\n", "answer.h")
    path = bpf_source('#include "answer.h"\nint f(u64 *ctx) { return ANSWER; }\n')
    first = compile(path)
    header.write_text("#define ANSWER 2\n")
    assert compiler_ran(path)
    assert compile(path) != first


def test_copy_in_another_directory_is_a_hit_and_another_name_a_miss(bpf_source: Source, tmp_path: Path) -> None:
    bpf_source("#define ANSWER 1\n", "answer.h")
    path = bpf_source('#include "answer.h"\nint f(u64 *ctx) { return ANSWER; }\n')
    first = compile(path)
    shutil.copytree(path.parent, copied := tmp_path / "copy")
    assert not compiler_ran(copied / path.name)
    assert compile(copied / path.name) == first
    renamed = (copied / path.name).rename(copied / "other.bpf.c")
    assert compiler_ran(renamed)
    assert compile(renamed).source == "other.bpf.c"


def test_each_set_of_defines_is_an_entry(bpf_source: Source) -> None:
    path = bpf_source("int f(u64 *ctx) { return A + B; }\n")
    assert compiler_ran(path, A=1, B=2)
    assert compiler_ran(path, A=2, B=1)
    assert not compiler_ran(path, B=2, A=1)
    assert not compiler_ran(path, A="1", B="2")


@pytest.mark.parametrize("what", ["identity", "libbcc.version"])
def test_other_kernel_or_compiler_is_a_miss(bpf_source: Source, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = bpf_source(TEXT)
    compile(path)
    monkeypatch.setattr(f"ghostbpf.loaders.compiler.{what}", lambda: "another")
    assert compiler_ran(path)


def test_parts_of_a_key_do_not_run_together() -> None:
    parts = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("abc", ""),
        ("a\0b", "c"),
        ("a", "b\0c"),
        ("a\0b\0c",),
        ("a", "b", "c"),
    ]
    assert len({cache.key(*each) for each in parts}) == len(parts)


def flip(entry: Path, at: int) -> None:
    data = bytearray(entry.read_bytes())
    data[at] ^= 1
    entry.write_bytes(data)


def keep(entry: Path, part: slice) -> None:
    entry.write_bytes(entry.read_bytes()[part])


def reseal(entry: Path, body: bytes) -> None:
    """Write ``body`` with a checksum that is right for it."""
    entry.write_bytes(cache._FORMAT + cache._digest(entry.name, body) + body)


def become_directory(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


#: Bodies that are not an object: no JSON, JSON of another shape, and fields of other types.
RUBBISH = (
    b"",
    b"[]",
    b"\xff",
    b"[" * 100_000,
    b'{"functions": 1, "maps": [], "btf": "", "source": ""}',
    b'{"functions": [[]], "maps": [], "btf": "", "source": ""}',
    b'{"functions": [], "maps": [{}], "btf": "", "source": ""}',
    b'{"functions": [], "maps": [1], "btf": "", "source": ""}',
    b'{"functions": [], "maps": [], "btf": 7, "source": ""}',
)

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda entry: keep(entry, slice(0)),
    "half lost": lambda entry: keep(entry, slice(80)),
    "last byte lost": lambda entry: keep(entry, slice(-1)),
    "format": lambda entry: flip(entry, 0),
    "checksum": lambda entry: flip(entry, len(cache._FORMAT)),
    "body": lambda entry: flip(entry, -20),
    **{f"sound checksum of {body[:60]!r}": lambda entry, body=body: reseal(entry, body) for body in RUBBISH},
    "another user's": lambda entry: os.chown(entry, 65534, 65534),
    "a directory": become_directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_entry_is_rebuilt(bpf_source: Source, home: Path, damage: str) -> None:
    path = bpf_source(TEXT)
    good = compile(path)
    (entry,) = entries(home)
    assert cache.load(entry.name) == good
    DAMAGES[damage](entry)
    assert cache.load(entry.name) is None
    assert compiler_ran(path)
    assert compile(path) == good
    if damage != "a directory":
        assert not compiler_ran(path)
        assert entry.stat().st_uid == os.geteuid()


def test_entry_under_the_name_of_another_is_no_entry(bpf_source: Source, home: Path) -> None:
    first, second = (bpf_source(TEXT.replace("1", str(n)), f"answer{n}.bpf.c") for n in (1, 2))
    compile(first)
    (theirs,) = entries(home)
    good = compile(second)
    (mine,) = set(entries(home)) - {theirs}
    mine.write_bytes(theirs.read_bytes())
    assert cache.load(mine.name) is None
    assert compile(second) == good


def test_entry_that_may_not_be_read_is_no_entry(bpf_source: Source, home: Path) -> None:
    compile(bpf_source(TEXT))
    (entry,) = entries(home)
    os.seteuid(65534)
    try:
        assert cache.load(entry.name) is None
    finally:
        os.seteuid(0)
    assert cache.load(entry.name) is not None


def test_only_the_entry_is_left_behind(bpf_source: Source, home: Path) -> None:
    compile(bpf_source(TEXT))
    (entry,) = entries(home)
    assert entry.parent == home / "ghostbpf" / "objects"
    assert entry.parent.stat().st_mode & 0o077 == 0


def fill(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(1024)):
                pass
        except OSError:
            return


def test_full_disk_costs_only_time(
    bpf_source: Source, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, small = bpf_source(TEXT), mount("tmpfs", "size=64k")
    fill(small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(small))
    assert compile(path).functions
    assert compiler_ran(path)
    assert [p.name for p in entries(small)] == ["filler"]


def test_read_only_home_costs_only_time(
    bpf_source: Source, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bpf_source(TEXT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(mount("tmpfs", "ro")))
    assert compile(path).functions
    assert compiler_ran(path)


def test_cache_home_that_is_a_file_costs_only_time(
    bpf_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile(bpf_source(TEXT)).functions


def test_without_the_variable_it_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.directory() == Path("/home/someone/.cache/ghostbpf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == Path("/home/someone/.cache/ghostbpf")


def test_processes_that_compile_the_same_source_at_once_agree(bpf_source: Source, home: Path) -> None:
    path = bpf_source("BPF_HASH(counts, u32, u64, 4);\nint f(u64 *ctx) { counts.increment(1); return 1; }\n")
    script = (
        "import sys; from ghostbpf.loaders.compiler import compile; sys.stdin.read(1);"
        "sys.stdout.buffer.write(compile(sys.argv[1]).to_bytes())"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(b"!")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert set(said) == {compile(path).to_bytes()}
    assert Object.from_bytes(said[0]).functions["f"].relocations[0].symbol == "counts"
    (entry,) = entries(home)
    assert cache.load(entry.name) == compile(path)
