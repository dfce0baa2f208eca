# SPDX-License-Identifier: Apache-2.0
"""Maps from both sides: a BPF program reads what Python stores, and the reverse."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import cffi
import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.errors import BpfError
from ghostbpf.loaders.link import Module, Program, Target
from ghostbpf.loaders.maps import Array, Hash, Map, MmapArray, PerCpuArray, possible_cpus
from ghostbpf.loaders.object import Object

RECORD = "struct record { u32 a; s16 b; u64 c; };\nstruct other { u32 a; };\n"


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    return build(
        RECORD
        + """
        BPF_HASH(counts, u32, u64, 4);
        BPF_HASH(records, u32, struct record, 4);
        BPF_ARRAY(squares, u64, 8);
        BPF_PERCPU_ARRAY(runs, u64, 2);
        BPF_PERCPU_ARRAY(halves, u32, 2);
        BPF_F_TABLE("array", u32, struct record, shared, 4, BPF_F_MMAPABLE);

        int touch(u64 *ctx)
        {
            u32 key = ctx[0];
            u64 *count = counts.lookup(&key), *run, square = (u64)key * key;
            struct record *r, fresh = {.a = key, .b = -3, .c = ~0ULL};

            if (!count)
                return -2;
            *count += 1;
            ctx[1] = *count;
            records.update(&key, &fresh);
            squares.update(&key, &square);
            key = 1;
            halves.lookup(&key);
            run = runs.lookup(&key);
            if (run)
                *run += 1;
            return 0;
        }

        int add_up(u64 *ctx)
        {
            u32 from = 1, to = 2;
            struct record *x = shared.lookup(&from), *y = shared.lookup(&to);

            if (!x || !y)
                return -1;
            y->c = x->a + x->b + x->c;
            return 0;
        }
        """
    )


@pytest.fixture
def module(compiled: Object) -> Iterator[Module]:
    with contextlib.closing(Module(compiled)) as made:
        yield made


@pytest.fixture
def run(module: Module) -> Iterator[Callable[..., int]]:
    """``run(function, *words)``: the return value of a program called with those words."""
    with contextlib.ExitStack() as loaded:
        programs: dict[str, Program] = {}

        def call(function: str, *words: int) -> int:
            if function not in programs:
                programs[function] = loaded.enter_context(module.load(function, Target.syscall()))
            return programs[function].run(struct.pack(f"{len(words)}Q", *words))[0]

        yield call


@pytest.fixture(scope="module")
def ffi(tmp_path_factory: pytest.TempPathFactory) -> cffi.FFI:
    header = tmp_path_factory.mktemp("abi") / "record.h"
    header.write_text(RECORD)
    return abi.load(header)


Run = Callable[..., int]


def test_program_counts_what_python_set(module: Module, run: Run, ffi: cffi.FFI) -> None:
    counts = Hash(module.maps["counts"], ffi, "u32", "u64")
    assert run("touch", 3, 0) == -2
    counts[3] = 40
    assert [run("touch", 3, 0) for _ in range(2)] == [0, 0]
    assert counts[3] == 42
    counts[3] += 1
    assert counts.get(3) == 43


def test_hash_is_a_mapping(module: Module, ffi: cffi.FFI) -> None:
    counts = Hash(module.maps["counts"], ffi, "u32", "u64")
    assert list(counts) == []
    assert counts.get(1) is None
    with pytest.raises(KeyError, match="1"):
        counts[1]
    with pytest.raises(KeyError, match="1"):
        del counts[1]
    for key in (1, 2, 0xFFFFFFFF):
        counts[key] = key + (1 << 40)
    assert dict(counts.items()) == {key: key + (1 << 40) for key in (1, 2, 0xFFFFFFFF)}
    del counts[2]
    assert sorted(counts) == [1, 0xFFFFFFFF]


def test_full_hash_names_the_map(module: Module, ffi: cffi.FFI) -> None:
    counts = Hash(module.maps["counts"], ffi, "u32", "u64")
    for key in range(4):
        counts[key] = 1
    with pytest.raises(BpfError, match="set 4 in map counts"):
        counts[4] = 1


def test_struct_values_come_whole_and_as_copies(module: Module, run: Run, ffi: cffi.FFI) -> None:
    Hash(module.maps["counts"], ffi, "u32", "u64")[2] = 0
    run("touch", 2, 0)
    records = Hash(module.maps["records"], ffi, "u32", "struct record")
    found = records[2]
    assert (found.a, found.b, found.c) == (2, -3, (1 << 64) - 1)
    found.a = 9
    assert records[2].a == 2
    records[2] = found
    assert records[2].a == 9
    assert [(key, value.a) for key, value in records.items()] == [(2, 9)]


def test_struct_value_may_be_fields_pointer_or_struct(module: Module, ffi: cffi.FFI) -> None:
    records = Hash(module.maps["records"], ffi, "u32", "struct record")
    records[1] = {"a": 7, "b": -1}
    records[2] = records[1]
    records[3] = records[1][0]
    assert [(records[key].a, records[key].b, records[key].c) for key in (1, 2, 3)] == [(7, -1, 0)] * 3


def test_struct_of_another_type_is_refused(module: Module, ffi: cffi.FFI) -> None:
    records = Hash(module.maps["records"], ffi, "u32", "struct record")
    # The kernel would read past the end of the smaller struct.
    with pytest.raises(TypeError):
        records[1] = ffi.new("struct other *")
    assert records.get(1) is None


def test_array_holds_zeroes_to_its_end(module: Module, run: Run, ffi: cffi.FFI) -> None:
    Hash(module.maps["counts"], ffi, "u32", "u64")[5] = 0
    run("touch", 5, 0)
    squares = Array(module.maps["squares"], ffi, "u64")
    assert [squares[i] for i in range(len(squares))] == [0, 0, 0, 0, 0, 25, 0, 0]
    with pytest.raises(KeyError):
        squares[8]


def test_per_cpu_values_add_up(module: Module, run: Run, ffi: cffi.FFI) -> None:
    Hash(module.maps["counts"], ffi, "u32", "u64")[0] = 0
    runs = PerCpuArray(module.maps["runs"], ffi, "u64")
    for _ in range(7):
        run("touch", 0, 0)
    assert len(runs[1]) == possible_cpus()
    assert (sum(runs[0]), sum(runs[1])) == (0, 7)
    runs.clear(1)
    assert sum(runs[1]) == 0
    assert len(runs) == 2
    with pytest.raises(IndexError):
        runs[2]


def test_mapped_record_is_the_programs_record(module: Module, run: Run, ffi: cffi.FFI) -> None:
    with MmapArray(module.maps["shared"], ffi, "struct record") as shared:
        assert len(shared) == 4
        shared[1].a, shared[1].b, shared[1].c = 100, -30, 5
        assert run("add_up") == 0
        assert shared[2].c == 75
        shared[1].c += 1
        assert run("add_up") == 0
        assert shared[2].c == 76
        assert [record.c for record in shared] == [0, 6, 76, 0]
        for outside in (4, -1):
            with pytest.raises(IndexError):
                shared[outside]


def test_unmapped_records_keep_their_values_in_the_map(module: Module, ffi: cffi.FFI) -> None:
    with MmapArray(module.maps["shared"], ffi, "struct record") as shared:
        shared[3].c = 11
    assert Array(module.maps["shared"], ffi, "struct record")[3].c == 11
    with MmapArray(module.maps["shared"], ffi, "struct record") as shared:
        assert shared[3].c == 11


@pytest.mark.parametrize(
    "view",
    [
        lambda m, ffi: Hash(m["counts"], ffi, "u64", "u64"),
        lambda m, ffi: Hash(m["counts"], ffi, "u32", "u32"),
        lambda m, ffi: Array(m["squares"], ffi, "struct record"),
        lambda m, ffi: PerCpuArray(m["runs"], ffi, "u32"),
        lambda m, ffi: PerCpuArray(m["halves"], ffi, "u32"),  # the kernel lays them out 8 bytes apart
        lambda m, ffi: MmapArray(m["shared"], ffi, "u64"),
        lambda m, ffi: MmapArray(m["squares"], ffi, "u64"),  # not mmapable
        lambda m, ffi: Array(m["runs"], ffi, "u64"),  # the kernel would write past one value
    ],
    ids=["key", "value", "array", "per-CPU", "per-CPU half", "mapped", "not mmapable", "per-CPU as one"],
)
def test_view_that_does_not_fit_is_refused(
    module: Module, ffi: cffi.FFI, view: Callable[[dict[str, Map], cffi.FFI], object]
) -> None:
    with pytest.raises(TypeError, match=r"map (counts|squares|runs|halves|shared)"):
        view(module.maps, ffi)


def test_pinned_map_is_the_same_map(module: Module, ffi: cffi.FFI, bpffs: Path) -> None:
    counts = Hash(module.maps["counts"], ffi, "u32", "u64")
    counts[1] = 5
    counts.map.pin(bpffs / "counts")
    with Map.open(bpffs / "counts") as opened:
        again = Hash(opened, ffi, "u32", "u64")
        assert opened.definition == counts.map.definition
        assert again[1] == 5
        again[1] = 6
    assert counts[1] == 6


def test_pin_outlives_its_module(compiled: Object, ffi: cffi.FFI, bpffs: Path) -> None:
    with contextlib.closing(Module(compiled)) as module:
        Hash(module.maps["counts"], ffi, "u32", "u64")[1] = 5
        module.maps["counts"].pin(bpffs / "counts")
    with Map.open(bpffs / "counts") as opened:
        assert Hash(opened, ffi, "u32", "u64")[1] == 5


def test_pin_where_there_is_none_or_already_one(module: Module, bpffs: Path) -> None:
    with pytest.raises(BpfError, match=r"open .*/nothing: No such file"):
        Map.open(bpffs / "nothing")
    module.maps["counts"].pin(bpffs / "counts")
    with pytest.raises(BpfError, match=r"pin .*/counts: File exists"):
        module.maps["squares"].pin(bpffs / "counts")
