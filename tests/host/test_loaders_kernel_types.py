# SPDX-License-Identifier: Apache-2.0
"""Answers about the kernel's types that are kept on disk: they are the kernel's, and a bad copy costs only time."""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import cache, kernel_types
from ghostbpf.loaders.btf import VMLINUX, Btf, Kind
from ghostbpf.loaders.errors import KernelUnsupported

if not VMLINUX.exists():
    pytest.skip("this kernel has no BTF", allow_module_level=True)

#: Questions of each sort, in a new process; then whether the kernel's types were loaded to answer them.
_SCRIPT = """
from ghostbpf.loaders import kernel_types
from ghostbpf.loaders.btf import Btf, Kind

task = kernel_types.struct("task_struct")
print(task.id, task.size, *(f"{m.name}:{m.index}:{m.offset}:{m.type_id}:{m.size}" for m in task.members.values()))
print(kernel_types.find("vfs_read", Kind.FUNC), sorted(kernel_types.enum("bpf_map_type").items()))
print(Btf.kernel.__func__.cache_info().currsize)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of caches for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def answers() -> tuple[str, bool]:
    """What a new process answers, and whether it loaded the kernel's types."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    return "\n".join(lines), loaded == "1"


def expected() -> str:
    kernel = Btf.kernel()
    id = kernel.struct_id("task_struct")
    members = (f"{m.name}:{m.index}:{m.offset}:{m.type_id}:{m.size}" for m in kernel.members(id).values())
    return "\n".join(
        [
            " ".join([str(id), str(kernel.size(id)), *members]),
            f"{kernel.find('vfs_read', Kind.FUNC)} {sorted(kernel.enum('bpf_map_type').items())}",
        ]
    )


def only_entry(home: Path) -> Path:
    [entry] = (home / "ghostbpf" / "types").iterdir()
    return entry


def test_second_process_answers_the_same_without_loading_the_types() -> None:
    assert answers() == (expected(), True)
    assert answers() == (expected(), False)


def test_new_answers_are_added_to_those_of_another_process(home: Path) -> None:
    answers()
    before = marshal.loads(cache.load_bytes(only_entry(home).name, "types") or b"")
    script = "from ghostbpf.loaders import kernel_types; kernel_types.enum('bpf_prog_type')"
    subprocess.run([sys.executable, "-c", script], check=True)
    after = marshal.loads(cache.load_bytes(only_entry(home).name, "types") or b"")
    assert before.items() < after.items()
    assert answers() == (expected(), False)


def seal(body: bytes) -> Callable[[Path], object]:
    return lambda entry: entry.write_bytes(cache._FORMAT + cache._digest(entry.name, body) + body)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda entry: entry.write_bytes(b""),
    "cut": lambda entry: entry.write_bytes(entry.read_bytes()[:-1]),
    "another user's": lambda entry: os.chown(entry, 65534, 65534),
    "nothing, with its checksum": seal(b""),
    "no marshalled value, with its checksum": seal(b"\xff\xff"),
    "no dictionary, with its checksum": seal(marshal.dumps(["id", "vfs_read"])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_entry_is_replaced(home: Path, damage: str) -> None:
    answers()
    DAMAGES[damage](only_entry(home))
    assert answers() == (expected(), True)
    assert answers() == (expected(), False)


@pytest.fixture
def made() -> Iterator[Callable[[], kernel_types._Answers]]:
    """Makes answers as a new process has them; they are stored only when the test says so."""
    with contextlib.ExitStack() as at_end:

        def make() -> kernel_types._Answers:
            answers = kernel_types._Answers()
            at_end.callback(atexit.unregister, answers._store)
            return answers

        yield make


def test_other_kernel_has_answers_of_its_own(
    made: Callable[[], kernel_types._Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("id", "f", 12)
    mine = made()
    assert mine.get(question, lambda: 7) == 7
    mine._store()
    assert made().get(question, lambda: 8) == 7
    monkeypatch.setattr(kernel_types, "identity", lambda: "another")
    assert made().get(question, lambda: 8) == 8


def test_without_a_place_to_keep_them_the_kernel_is_asked_each_time(home: Path) -> None:
    home.touch()
    for _ in range(2):
        assert answers() == (expected(), True)


def test_more_answers_than_the_limit_are_not_stored(home: Path, made: Callable[[], kernel_types._Answers]) -> None:
    known = made()
    known.get(("enum", "small"), lambda: {"A": 1})
    known._store()
    before = only_entry(home).read_bytes()
    known.get(("enum", "large"), lambda: {f"E{n}": n for n in range(20_000)})
    known._store()
    assert only_entry(home).read_bytes() == before


def test_missing_types() -> None:
    assert kernel_types.find("no_such_function", Kind.FUNC) is None
    with pytest.raises(KernelUnsupported, match="has no struct no_such_struct"):
        kernel_types.struct("no_such_struct")
    with pytest.raises(KernelUnsupported, match="has no enum no_such_enum"):
        kernel_types.enum("no_such_enum")
