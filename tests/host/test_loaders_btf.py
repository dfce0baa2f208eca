# SPDX-License-Identifier: Apache-2.0
"""The BTF reader against bpftool, which has its own reader."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.loaders import btf
from ghostbpf.loaders.btf import VMLINUX, Btf, Kind, identity
from ghostbpf.loaders.errors import KernelUnsupported

Type = dict[str, Any]

if not VMLINUX.exists():
    pytest.skip("this kernel has no BTF", allow_module_level=True)


@pytest.fixture(scope="module")
def dump(bpftool: Callable[..., Any]) -> list[Type]:
    """Every type of the kernel, as bpftool reads it."""
    types: list[Type] = bpftool("btf", "dump", "file", VMLINUX)["types"]
    return types


def named(dump: list[Type], *kinds: str) -> dict[str, Type]:
    """The types of ``kinds`` with a unique name."""
    those = [t for t in dump if t["kind"] in kinds and t["name"] != "(anon)"]
    times = Counter(t["name"] for t in those)
    return {t["name"]: t for t in those if times[t["name"]] == 1}


def sample(types: dict[str, Type], size: int, *always: str) -> list[Type]:
    """``size`` of ``types``, spread evenly over the sorted names, the same in each run."""
    names = sorted(types)
    return [types[name] for name in [*names[:: len(names) // size + 1], *(a for a in always if a in types)]]


def enumerators_of(entry: Type) -> dict[str, int]:
    # bpftool writes an unsigned 0x80000000 with the sign bit extended.
    mask = -1 if entry["encoding"] == "SIGNED" else (1 << 8 * entry["size"]) - 1
    return {v["name"]: v["val"] & mask for v in entry["values"]}


def test_every_type_is_counted(dump: list[Type]) -> None:
    # Type 0 is void, which bpftool does not list.
    assert len(Btf.kernel()) == len(dump) + 1


def test_struct_ids_and_sizes(dump: list[Type]) -> None:
    kernel = Btf.kernel()
    chosen = sample(named(dump, "STRUCT"), 200, "task_struct", "file", "sched_entity", "tcp_congestion_ops")
    assert len(chosen) > 190
    for entry in chosen:
        assert kernel.struct_id(entry["name"]) == entry["id"]
        assert kernel.size(entry["id"]) == entry["size"], entry["name"]
        assert kernel.kind(entry["id"]) is Kind.STRUCT
        assert kernel.name(entry["id"]) == entry["name"]


def test_member_indexes_offsets_and_types(dump: list[Type]) -> None:
    kernel, bitfields, unions = Btf.kernel(), 0, 0
    structs, others = named(dump, "STRUCT"), named(dump, "UNION")
    with_bitfields = [s for s in structs.values() if any("bitfield_size" in m for m in s["members"])]
    for entry in [*sample(structs, 200), *sample(others, 20), *with_bitfields]:
        expected = {
            m["name"]: (index, m["bits_offset"] // 8, m["type_id"])
            for index, m in enumerate(entry["members"])
            if m["name"] != "(anon)"
        }
        found = kernel.members(entry["id"])
        assert {n: (m.index, m.offset, m.type_id) for n, m in found.items()} == expected, entry["name"]
        bitfields += sum("bitfield_size" in m for m in entry["members"])
        unions += entry["kind"] == "UNION"
    assert bitfields > 10
    assert unions > 10


def test_member_size_is_that_of_its_type(dump: list[Type]) -> None:
    kernel = Btf.kernel()
    members = kernel.members(kernel.struct_id("task_struct"))
    assert members["comm"].size == 16
    assert members["pid"].size == 4
    assert members["se"].size == named(dump, "STRUCT")["sched_entity"]["size"]


def test_members_of_a_typedef_are_those_of_its_struct() -> None:
    kernel = Btf.kernel()
    alias = kernel.find("atomic_t", Kind.TYPEDEF)
    assert alias is not None
    assert list(kernel.members(alias)) == ["counter"]


def test_every_named_enum(dump: list[Type]) -> None:
    kernel, enums = Btf.kernel(), named(dump, "ENUM", "ENUM64")
    assert any(t["encoding"] == "SIGNED" and t["values"][0]["val"] < 0 for t in enums.values())
    assert any(t["kind"] == "ENUM64" for t in enums.values())
    for name, entry in enums.items():
        assert kernel.enum(name) == enumerators_of(entry), name


def test_every_enumerator_of_every_enum(dump: list[Type]) -> None:
    expected: dict[str, int] = {}
    for entry in dump:
        if entry["kind"] in ("ENUM", "ENUM64"):
            expected |= enumerators_of(entry)
    assert Btf.kernel().enumerators == expected


def test_function_prototypes(dump: list[Type]) -> None:
    kernel, by_id = Btf.kernel(), {t["id"]: t for t in dump}
    chosen = sample(named(dump, "FUNC"), 200, "tcp_reno_ssthresh", "bpf_task_from_pid", "vfs_read")
    assert len(chosen) > 190
    for entry in chosen:
        func_id = kernel.find(entry["name"], Kind.FUNC)
        assert func_id is not None
        assert func_id == entry["id"]
        proto = by_id[entry["type_id"]]
        expected = [("" if p["name"] == "(anon)" else p["name"], p["type_id"]) for p in proto["params"]]
        assert [(p.name, p.type_id) for p in kernel.params(func_id)] == expected, entry["name"]
        assert kernel.params(proto["id"]) == kernel.params(func_id)
        assert kernel.target(kernel.target(func_id)) == proto["ret_type_id"]


def test_resolve_takes_typedefs_and_qualifiers_off(dump: list[Type]) -> None:
    kernel, by_id = Btf.kernel(), {t["id"]: t for t in dump}
    const = next(
        t for t in dump if t["kind"] == "CONST" and by_id.get(t["type_id"], {}).get("name") in ("u32", "__u32")
    )
    resolved = by_id[kernel.resolve(const["id"])]
    assert (resolved["kind"], resolved["name"]) == ("INT", "unsigned int")


def test_find_tries_kinds_in_order_and_returns_none(dump: list[Type]) -> None:
    kernel = Btf.kernel()
    both = sorted(named(dump, "STRUCT").keys() & named(dump, "FUNC").keys())[0]
    struct_id, func_id = named(dump, "STRUCT")[both]["id"], named(dump, "FUNC")[both]["id"]
    assert kernel.find(both, Kind.STRUCT, Kind.FUNC) == struct_id
    assert kernel.find(both, Kind.FUNC, Kind.STRUCT) == func_id
    assert kernel.find(both, Kind.ENUM64, Kind.FUNC) == func_id
    assert kernel.find(both, Kind.ENUM64) is None


def test_what_the_kernel_lacks_is_named() -> None:
    kernel = Btf.kernel()
    with pytest.raises(KernelUnsupported, match="no struct no_such_thing") as struct_error:
        kernel.struct_id("no_such_thing")
    assert struct_error.value.feature == "struct no_such_thing"
    with pytest.raises(KernelUnsupported, match="no enum no_such_thing") as enum_error:
        kernel.enum("no_such_thing")
    assert enum_error.value.feature == "enum no_such_thing"
    # The name is that of a struct, not of an enum.
    with pytest.raises(KernelUnsupported):
        kernel.enum("task_struct")


def test_raw_bytes_read_like_the_kernels_own() -> None:
    raw, kernel = Btf.parse(VMLINUX.read_bytes()), Btf.kernel()
    assert len(raw) == len(kernel)
    assert raw.members(raw.struct_id("task_struct")) == kernel.members(kernel.struct_id("task_struct"))


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"not BTF at all", lambda d: d[:2000], lambda d: d[4:]])
def test_garbage_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = damage(VMLINUX.read_bytes())
    with pytest.raises(ValueError, match=f"not BTF: {len(data)} bytes"):
        Btf.parse(data)


def one_enum64(name: str, *, signed: bool, **values: int) -> bytes:
    """BTF of a single 64-bit enum; few kernels have a signed one."""
    strings, entries = b"\0" + name.encode() + b"\0", b""
    for enumerator, value in values.items():
        entries += struct.pack("=IQ", len(strings), value & (1 << 64) - 1)
        strings += enumerator.encode() + b"\0"
    types = struct.pack("=III", 1, signed << 31 | Kind.ENUM64 << 24 | len(values), 8) + entries
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


@pytest.mark.parametrize(("signed", "all_ones"), [(True, -1), (False, (1 << 64) - 1)])
def test_64_bit_enumerators_have_the_sign_of_their_enum(signed: bool, all_ones: int) -> None:
    blob = Btf.parse(one_enum64("wide", signed=signed, ONES=all_ones, HIGH=1 << 40, ZERO=0))
    assert blob.enum("wide") == blob.enumerators == {"ONES": all_ones, "HIGH": 1 << 40, "ZERO": 0}


def test_unknown_type_id_is_refused() -> None:
    with pytest.raises(ValueError, match="no BTF type 4000000000"):
        Btf.kernel().kind(4_000_000_000)


def test_identity_is_the_same_in_every_process() -> None:
    script = "from ghostbpf.loaders.btf import identity; print(identity())"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == identity()
    assert len(identity()) == 16


@pytest.fixture
def kernel_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Writable copies of the running kernel's BTF and notes, which identity() reads."""
    copies = tmp_path / "vmlinux", tmp_path / "notes"
    for name, copy in zip(("VMLINUX", "_NOTES"), copies, strict=True):
        copy.write_bytes(getattr(btf, name).read_bytes())
        monkeypatch.setattr(btf, name, copy)
    return copies


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_build_id_is_in_the_kernels_notes() -> None:
    header = struct.pack("=III", 4, 20, 3) + b"GNU\0"
    assert len(btf._build_id()) == 20
    assert header + btf._build_id() in btf._NOTES.read_bytes()


def test_build_id_after_other_notes_is_found(kernel_files: tuple[Path, Path]) -> None:
    _, notes = kernel_files
    other = struct.pack("=III", 6, 5, 3) + b"Linux\0\0\0" + b"12345\0\0\0"
    mine = struct.pack("=III", 4, 20, 3) + b"GNU\0" + bytes(range(20))
    notes.write_bytes(other + mine)
    assert btf._build_id() == bytes(range(20))
    for end in range(len(other + mine)):
        notes.write_bytes((other + mine)[:end])
        assert btf._build_id() == b""


def test_identity_follows_the_build_id(kernel_files: tuple[Path, Path]) -> None:
    _, notes = kernel_files
    assert identity.__wrapped__() == identity()
    flip(notes, notes.read_bytes().index(btf._build_id()))
    assert identity.__wrapped__() != identity()


def test_identity_follows_the_lengths_of_the_types(kernel_files: tuple[Path, Path]) -> None:
    types, _ = kernel_files
    flip(types, 12)
    assert identity.__wrapped__() != identity()


def test_identity_without_a_build_id_follows_the_types(kernel_files: tuple[Path, Path]) -> None:
    types, notes = kernel_files
    notes.unlink()
    before = identity.__wrapped__()
    assert before != identity()
    flip(types, -100)
    assert identity.__wrapped__() not in (before, identity())


def test_identity_needs_types(kernel_files: tuple[Path, Path]) -> None:
    kernel_files[0].unlink()
    with pytest.raises(KernelUnsupported, match="No such file"):
        identity.__wrapped__()
