# SPDX-License-Identifier: Apache-2.0
"""Objects linked into programs: the maps they get, the verifier's errors, and running them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import KernelUnsupported, LinkError, PermissionMissing, VerifierError
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import Array, Hash
from ghostbpf.loaders.object import Object

Build = Callable[[str], Object]


@pytest.fixture(scope="module")
def compiled(build: Build) -> Object:
    return build(
        """
        BPF_ARRAY(totals, u64, 2);
        BPF_HASH(unused, u32, u64, 4);

        struct request { s64 a, b, sum; u32 tick; };

        int add(struct request *request)
        {
            u32 key = 0;
            u64 *total = totals.lookup(&key);

            if (!total)
                return -1;
            *total += request->a + request->b;
            request->sum = *total;
            return request->sum < 0 ? -22 : 0;
        }

        int tick_is(struct request *request)
        {
            u64 tick = LINK_CONSTANT(tick);
            request->sum = tick;
            return 0;
        }

        int a_function_with_a_name_longer_than_the_kernel_keeps(u64 *ctx) { return 3; }
        int wild_pointer(u64 *ctx) { u64 *p = (u64 *)ctx[0]; return *p; }
        int may_be_null(u64 *ctx) { u32 key = ctx[0]; u64 *v = totals.lookup(&key); return *v; }
        int out_of_bounds(u64 *ctx) { u32 key = 0; u64 *v = totals.lookup(&key); return v ? v[1] : 0; }
        int endless(u64 *ctx) { for (;;) ctx[0]++; return 0; }

        int on_switch(unsigned long long *ctx)
        {
            struct task_struct *next = (struct task_struct *)ctx[2];
            u32 key = 1;
            u64 *total = totals.lookup(&key);
            if (total)
                __sync_fetch_and_add(total, next->pid);
            return 0;
        }
        """
    )


@pytest.fixture
def module(compiled: Object, stack: contextlib.ExitStack) -> Module:
    return stack.enter_context(contextlib.closing(Module(compiled, constants={"tick": 0x1_0000_0001})))


@pytest.fixture(scope="module")
def ffi() -> cffi.FFI:
    return abi.load()


def add(module: Module, a: int, b: int) -> tuple[int, int]:
    """The return value of ``add``, and the sum in its context."""
    with module.load("add", Target.syscall()) as program:
        result, context = program.run(struct.pack("3qQ", a, b, 99, 0))
    assert struct.unpack_from("2q", context) == (a, b)
    return result, struct.unpack_from("q", context, 16)[0]


def test_program_reads_and_writes_its_context(module: Module) -> None:
    assert add(module, 20, 22) == (0, 42)


def test_negative_return_value_stays_negative(module: Module) -> None:
    assert add(module, -50, 2) == (-errno.EINVAL, -48)


def test_context_given_is_not_changed(module: Module) -> None:
    context = bytearray(struct.pack("3qQ", 1, 2, 3, 0))
    with module.load("add", Target.syscall()) as program:
        program.run(context)
    assert context == struct.pack("3qQ", 1, 2, 3, 0)


def test_program_without_context_and_with_a_long_name_runs(module: Module) -> None:
    with module.load("a_function_with_a_name_longer_than_the_kernel_keeps", Target.syscall()) as program:
        assert program.run() == (3, b"")


def test_constant_reaches_the_program(module: Module) -> None:
    with module.load("tick_is", Target.syscall()) as program:
        context = program.run(bytes(32))[1]
    assert struct.unpack_from("q", context, 16)[0] == 0x1_0000_0001


def test_constant_without_a_value_is_named(compiled: Object, stack: contextlib.ExitStack) -> None:
    module = stack.enter_context(contextlib.closing(Module(compiled)))
    with pytest.raises(LinkError, match=r"test\.bpf\.c needs a value for tick") as error:
        module.load("tick_is", Target.syscall())
    assert error.value.symbol == "tick"


def test_function_that_is_not_there_is_named(module: Module) -> None:
    with pytest.raises(LinkError, match=r"test\.bpf\.c has no function subtract") as error:
        module.load("subtract", Target.syscall())
    assert error.value.symbol == "subtract"


def test_only_maps_in_use_are_made(module: Module) -> None:
    assert set(module.maps) == set(module.own_maps) == {"totals"}


def test_each_module_has_maps_of_its_own(compiled: Object, module: Module, stack: contextlib.ExitStack) -> None:
    other = stack.enter_context(contextlib.closing(Module(compiled)))
    add(module, 1, 0)
    assert add(other, 10, 0) == (0, 10)
    assert add(module, 1, 0) == (0, 2)


def test_modules_share_the_maps_they_are_given(
    build: Build, module: Module, stack: contextlib.ExitStack, ffi: cffi.FFI
) -> None:
    reader = build(
        """
        BPF_ARRAY(totals, u64, 2);
        BPF_ARRAY(mine, u64, 1);
        int read(u64 *ctx)
        {
            u32 key = 0;
            u64 *total = totals.lookup(&key), *own = mine.lookup(&key);
            return total && own ? *total + *own : -1;
        }
        """
    )
    other = Module(reader, maps=module.maps)
    assert set(other.own_maps) == {"mine"}
    assert other.maps["totals"] is module.maps["totals"]
    Array(other.maps["mine"], ffi, "u64")[0] = 100
    add(module, 4, 5)
    with other.load("read", Target.syscall()) as program:
        assert program.run()[0] == 109
    other.close()
    # Only the owner closes a shared map.
    assert add(module, 1, 0) == (0, 10)


def test_maps_of_other_names_are_not_borrowed(compiled: Object, module: Module) -> None:
    with contextlib.closing(Module(compiled, maps={"unrelated": module.maps["totals"]})) as other:
        assert set(other.maps) == {"totals"}
        assert other.maps["totals"] is not module.maps["totals"]


def test_entries_override_the_size_in_the_source(compiled: Object, ffi: cffi.FFI) -> None:
    with contextlib.closing(Module(compiled, entries={"totals": 7})) as module:
        assert module.maps["totals"].definition.max_entries == 7
        totals = Array(module.maps["totals"], ffi, "u64")
        totals[6] = 1
        assert len(totals) == 7
    assert compiled.maps["totals"].max_entries == 2


def test_loaded_program_keeps_its_maps(compiled: Object) -> None:
    module = Module(compiled)
    with module.load("add", Target.syscall()) as program:
        module.close()
        for expected in (1, 2):
            assert struct.unpack_from("q", program.run(struct.pack("3qQ", 1, 0, 0, 0))[1], 16)[0] == expected


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("wild_pointer", "R1 invalid mem access 'scalar'"),
        ("may_be_null", "R0 invalid mem access 'map_value_or_null'"),
        ("out_of_bounds", "R0 .*outside of the allowed memory range"),
        ("endless", "infinite loop detected at insn 0"),
    ],
)
def test_verifier_error_shows_its_reason(module: Module, function: str, reason: str) -> None:
    with pytest.raises(VerifierError, match=f"^the verifier rejects {function}: {reason}\n") as error:
        module.load(function, Target.syscall())
    assert error.value.function == function
    assert error.value.errno in (errno.EACCES, errno.EINVAL)
    assert len(error.value.log.splitlines()) > 3
    assert "processed " in error.value.log
    assert "processed " not in str(error.value)


_MERGED = """
    struct ids { u32 tid, tgid; s32 a, b; };
    BPF_HASH(seen, struct ids, u64, 16);
    BPF_TASK_STORAGE(states, struct ids);

    BPF_PROG(on_exit, struct task_struct *p)
    {
        struct ids ids = {}, *state = states.task_storage_get(p, 0, 0);
        u64 one = 1;

        if (!state)
            return 0;
        ids.tid = PID;
        ids.tgid = p->tgid;
        ids.a = state->a;
        ids.b = state->b;
        seen.insert(&ids, &one);
        return 0;
    }
"""


def test_two_members_read_by_one_load_are_explained_and_the_hint_works(build: Build) -> None:
    target = Target.tracepoint("sched_process_exit")
    with (
        contextlib.closing(Module(build(_MERGED.replace("PID", "p->pid")))) as merged,
        pytest.raises(VerifierError, match="access beyond the end of member pid") as error,
    ):
        merged.load("on_exit", target)
    hint = re.search(r"read it as (\S.*?), p being the struct task_struct", error.value.hint or "")
    assert hint
    assert "LLVM reads pid and the member behind it in one load of 8 bytes" in (error.value.hint or "")
    with contextlib.closing(Module(build(_MERGED.replace("PID", hint[1])))) as cured:
        cured.load("on_exit", target).close()


def test_many_are_loaded_each_as_its_own(module: Module) -> None:
    targets = {str(n): ("add" if n % 2 else "tick_is", Target.syscall()) for n in range(20)}
    loaded = module.load_all(targets)
    assert list(loaded) == list(targets)
    sums = []
    for program in loaded.values():
        with program:
            sums.append(struct.unpack_from("q", program.run(struct.pack("3qQ", 2, 3, 0, 0))[1], 16)[0])
    assert sums[::2] == [0x1_0000_0001] * 10
    assert sums[1::2] == [5 * n for n in range(1, 11)]


def test_load_of_many_reports_the_first_rejected_and_keeps_none(module: Module) -> None:
    names = ["add", "wild_pointer", "tick_is", "may_be_null", "add"]
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        with pytest.raises(VerifierError, match=r"^the verifier rejects wild_pointer"):
            module.load_all({str(n): (name, Target.syscall()) for n, name in enumerate(names)})
    assert os.listdir("/proc/self/fd") == before


def test_typed_tracepoint_program_loads(module: Module) -> None:
    with module.load("on_switch", Target.tracepoint("sched_switch")) as program:
        assert os.readlink(f"/proc/self/fd/{program.fd}") == "anon_inode:bpf-prog"
    # The target sets the context's type: with another target, the program is rejected.
    with pytest.raises(VerifierError):
        module.load("on_switch", Target.tracepoint("sched_process_exit"))


@pytest.mark.parametrize(
    ("target", "feature"),
    [
        (lambda: Target.tracepoint("no_such_event"), "tracepoint no_such_event"),
        (lambda: Target.iterator("no_such_thing"), "iterator no_such_thing"),
        (lambda: Target.struct_ops("no_such_ops", "init"), "struct no_such_ops"),
        (lambda: Target.struct_ops("tcp_congestion_ops", "no_such_member"), "tcp_congestion_ops.no_such_member"),
    ],
)
def test_target_the_kernel_lacks_is_named(target: Callable[[], Target], feature: str) -> None:
    with pytest.raises(KernelUnsupported, match=feature.split()[-1].split(".")[-1]) as error:
        target()
    assert error.value.feature == feature


def test_unprivileged_user_gets_an_error_that_names_the_capability(compiled: Object, tmp_path: Path) -> None:
    code = compiled.functions["a_function_with_a_name_longer_than_the_kernel_keeps"]
    alone = Object("x.bpf.c", {code.name: code}, {}, b"")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            Module(alone).load(code.name, Target.syscall())
        except PermissionMissing as error:
            status = 0 if "CAP_BPF" in error.capability and error.hint else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kernel_knows_programs_and_maps_by_their_names(
    bpf_source: Callable[..., Path], bpftool: Callable[..., Any]
) -> None:
    tag = f"n{os.getpid()}"
    program = f"{tag}_with_a_long_name"
    path = bpf_source(
        f"BPF_HASH({tag}_map, u32, u64, 4);\nint {program}(u64 *ctx) {{ {tag}_map.increment(1); return 0; }}\n"
    )
    with contextlib.closing(Module(compile(path))) as module, module.load(program, Target.syscall()):
        assert program[:15] in {p.get("name") for p in bpftool("prog", "show")}
        (shown,) = [m for m in bpftool("map", "show") if m.get("name") == f"{tag}_map"[:15]]
        assert (shown["type"], shown["bytes_key"], shown["bytes_value"]) == ("hash", 4, 8)


def test_map_types_reach_the_kernel(bpf_source: Callable[..., Path], bpftool: Callable[..., Any], bpffs: Path) -> None:
    path = bpf_source(
        "struct point { u32 x; u32 y; }; BPF_HASH(points, u32, struct point, 4);\n"
        "int f(u64 *ctx) { u32 k = 1; struct point p = {1, 2}; points.update(&k, &p); return 0; }\n"
    )
    with contextlib.closing(Module(compile(path))) as module:
        points = Hash(module.maps["points"], abi.load(), "u32", "u64")
        points[5] = 3 << 32 | 2
        points.map.pin(bpffs / "points")
        (dumped,) = bpftool("map", "dump", "pinned", bpffs / "points")
        assert dumped["formatted"] == {"key": 5, "value": {"x": 2, "y": 3}}
