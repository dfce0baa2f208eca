# SPDX-License-Identifier: Apache-2.0
"""Headers generated from BTF: names that a source may use, with the same meaning as in the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders import headers
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.object import Object

Build = Callable[[str], Object]

# BPF map types (kernel include/uapi/linux/bpf.h).
HASH, ARRAY, PROG_ARRAY, PERCPU_ARRAY, STACK_TRACE, RINGBUF, TASK_STORAGE = 1, 2, 3, 6, 7, 27, 29
NO_PREALLOC, MMAPABLE = 1 << 0, 1 << 10


@pytest.fixture(scope="module")
def everything(build: Build) -> Object:
    """A source that uses every construct of schedulers and tracers."""
    return build(
        """
        struct record { u64 when; u32 pid; char comm[TASK_COMM_LEN]; };
        struct guarded { struct bpf_spin_lock lock; u32 pad; u64 value; };

        BPF_HASH(seen, struct record, u64, 64);
        BPF_PERCPU_ARRAY(switches, u64, 4);
        BPF_TASK_STORAGE(per_task, struct guarded);
        BPF_F_TABLE("array", u32, u64, words, 8, BPF_F_MMAPABLE);
        BPF_RINGBUF_OUTPUT(events, 2);
        BPF_PROG_ARRAY(slots, 3);
        BPF_STACK_TRACE(stacks, 128);
        BPF_HASH(locked, u32, struct guarded, 4);

        int typed_tracepoint(unsigned long long *ctx)
        {
            struct task_struct *next = (struct task_struct *)ctx[2];
            struct record record = {.when = bpf_ktime_get_ns(), .pid = next->pid};
            struct guarded *mine = per_task.task_storage_get(next, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
            u32 zero = 0;
            u64 *count = switches.lookup(&zero);

            bpf_probe_read_kernel_str(record.comm, sizeof(record.comm), next->comm);
            if (count)
                __sync_fetch_and_add(count, 1);
            if (mine && next->se.on_rq && next->mm)
                mine->value = next->se.sum_exec_runtime + next->cpus_ptr->bits[0];
            seen.increment(record);
            events.ringbuf_output(&record, sizeof(record), BPF_RB_NO_WAKEUP);
            slots.call(ctx, 1);
            return 0;
        }

        int with_a_lock(unsigned long long *ctx)
        {
            u32 key = 0;
            struct guarded *g = locked.lookup(&key);
            u64 *word = words.lookup(&key);

            if (!g)
                return -1;
            bpf_spin_lock(&g->lock);
            g->value++;
            bpf_spin_unlock(&g->lock);
            if (word)
                *word = bpf_get_smp_processor_id();
            return stacks.get_stackid(ctx, BPF_F_REUSE_STACKID);
        }

        RAW_TRACEPOINT_PROBE(sched_wakeup)
        {
            struct task_struct *p = (struct task_struct *)ctx->args[0];
            return p->pid;
        }
        """
    )


def test_a_source_may_use_all_there_is(everything: Object) -> None:
    assert set(everything.functions) == {"typed_tracepoint", "with_a_lock", "raw_tracepoint__sched_wakeup"}
    assert all(function.code for function in everything.functions.values())


def test_map_definitions_survive_compilation(everything: Object) -> None:
    shapes = {n: (m.type, m.key_size, m.value_size, m.max_entries, m.flags) for n, m in everything.maps.items()}
    assert shapes == {
        "seen": (HASH, 32, 8, 64, 0),
        "switches": (PERCPU_ARRAY, 4, 8, 4, 0),
        "per_task": (TASK_STORAGE, 4, 16, 0, NO_PREALLOC),
        "words": (ARRAY, 4, 8, 8, MMAPABLE),
        "events": (RINGBUF, 0, 0, 2 * 4096, 0),
        "slots": (PROG_ARRAY, 4, 4, 3, 0),
        "stacks": (STACK_TRACE, 4, 127 * 8, 128, 0),
        "locked": (HASH, 4, 16, 4, 0),
    }


def test_map_value_types_are_described(everything: Object) -> None:
    types = Btf.parse(everything.btf)
    value = types.resolve(everything.maps["locked"].value_type)
    assert types.name(value) == "guarded"
    assert {n: m.offset for n, m in types.members(value).items()} == {"lock": 0, "pad": 4, "value": 8}


def test_compiled_structs_have_the_kernels_layout(bpf_source: Callable[..., Path]) -> None:
    kernel = Btf.kernel()
    checks = []
    for name in "task_struct sched_entity mm_struct file sk_buff tcp_sock tcp_congestion_ops rq cgroup net".split():
        struct_id = kernel.struct_id(name)
        checks.append(f'_Static_assert(sizeof(struct {name}) == {kernel.size(struct_id)}, "sizeof {name}");')
        checks += [
            f'_Static_assert(__builtin_offsetof(struct {name}, {m.name}) == {m.offset}, "{name}.{m.name}");'
            for m in kernel.members(struct_id).values()
            if m.offset * 8 % 64 == 0 and kernel.kind(kernel.resolve(m.type_id)) in (Kind.PTR, Kind.STRUCT)
        ]
    assert len(checks) > 150
    compile(bpf_source("\n".join(checks)))


def test_enumerators_have_the_kernels_values(build: Build) -> None:
    values = Btf.kernel().enumerators
    # Of an anonymous enum; above 32 bits; negative.
    names = ["BPF_F_CURRENT_CPU", "BPF_NOEXIST", "PERF_TXN_ABORT_MASK", "CPUHP_INVALID", "CPUHP_ONLINE"]
    suffix = {name: "ULL" if values[name] >> 31 > 0 else "" for name in names}
    build("\n".join(f'_Static_assert({name} == {values[name]}{suffix[name]}, "{name}");' for name in names))


def test_map_methods_need_no_flag_named(build: Build) -> None:
    obj = build(
        """
        BPF_HASH(counts, u32, u64, 4);
        int all(u64 *ctx)
        {
            u32 key = 0;
            u64 value = 1;
            counts.update(&key, &value);
            counts.insert(&key, &value);
            counts.lookup_or_try_init(&key, &value);
            counts.increment(key);
            counts.delete(&key);
            return 0;
        }
        """
    )
    assert {r.symbol for r in obj.functions["all"].relocations} == {"counts"}


def test_have_is_defined_where_the_kernel_has_the_function(build: Build) -> None:
    obj = build(
        """
        #ifdef HAVE_tcp_reno_ssthresh
        u32 with(u64 *ctx) { return tcp_reno_ssthresh((struct sock *)ctx[0]); }
        #endif
        #ifdef HAVE_tcp_no_such_function
        u32 never(u64 *ctx) { return tcp_no_such_function((struct sock *)ctx[0]); }
        #else
        u32 without(u64 *ctx) { return 0; }
        #endif
        """
    )
    assert set(obj.functions) == {"with", "without"}


def test_defines_reach_the_source(bpf_source: Callable[..., Path]) -> None:
    path = bpf_source('_Static_assert(LIMIT == 7, ""); _Static_assert(sizeof(KIND) == 2, "");')
    compile(path, {"LIMIT": 7, "KIND": "u16"})


def kfuncs_of(code: str) -> set[str]:
    return set(headers.generate(code, Btf.kernel()).kfuncs)


def test_called_kernel_functions_are_declared() -> None:
    assert kfuncs_of("int f(u64 *ctx) { return tcp_reno_ssthresh(0) + bpf_task_from_pid(3)->pid; }") == {
        "tcp_reno_ssthresh",
        "bpf_task_from_pid",
    }


def test_names_in_text_are_declared_once_each_and_numbered() -> None:
    made = headers.generate("int f(u64 *c) { vfs_read(0); tcp_reno_ssthresh(0); vfs_read(0); }", Btf.kernel())
    assert made.kfuncs == ("tcp_reno_ssthresh", "vfs_read")
    for number, name in enumerate(made.kfuncs):
        assert f"*{name} = ({name}__t *){0x40000000 + number:#x};" in made.vmlinux_h


@pytest.mark.parametrize(
    "code",
    [
        "bpf_map_lookup_elem(a, b); bpf_ktime_get_ns();",  # helpers, whose names are also those of kernel functions
        "static int vfs_read(struct file *f) { return 0; } int g(void) { return vfs_read(0); }",
        "#define vfs_read(x) (x)\nint g(void) { return vfs_read(0); }",
        "int g(void) { return ops.vfs_read(0) + ops->vfs_read(1); }",
        "int g(void) { return no_such_kernel_function(1); }",
    ],
    ids=["helper", "own", "macro", "member", "unknown"],
)
def test_what_is_not_a_kernel_function_is_not_declared(code: str) -> None:
    assert kfuncs_of(code) == set()


@pytest.mark.parametrize(
    "code",
    [
        "if (vfs_read(0)) { }",
        "while (x && vfs_read(f(1))) { }",
        "for (int i = 0; i < 4; i += vfs_read((void *)c)) { }",
        "y = vfs_read(&(struct file){ 0 });",
    ],
    ids=["if", "while", "for", "compound"],
)
def test_call_before_a_brace_is_no_definition(code: str) -> None:
    assert kfuncs_of(f"int g(u64 *c) {{ {code} }}") == {"vfs_read"}


def test_constants_are_numbered_by_name() -> None:
    made = headers.generate("LINK_CONSTANT(tick) + LINK_CONSTANT( base ) + LINK_CONSTANT(tick)", Btf.kernel())
    assert made.constants == ("base", "tick")


def test_type_id_is_the_kernels_and_casts_a_pointer(build: Build) -> None:
    made = headers.generate("TYPE_ID(task_struct) + TYPE_ID(no_such_struct)", Btf.kernel())
    assert f"#define TYPE_ID_task_struct {Btf.kernel().find('task_struct', Kind.STRUCT)}\n" in made.vmlinux_h
    assert "TYPE_ID_no_such_struct" not in made.vmlinux_h
    obj = build(
        """
        int own_pid(u64 *ctx)
        {
            struct task_struct *p = bpf_rdonly_cast(bpf_get_current_task_btf(), TYPE_ID(task_struct));

            return p->group_leader->pid;
        }
        """
    )
    with Module(obj).load("own_pid", Target.syscall()) as program:
        assert program.run(bytes(8))[0] == os.getpid()


def test_own_struct_takes_the_place_of_the_kernels(build: Build) -> None:
    build('struct vfsmount { int mine; };\n_Static_assert(sizeof(struct vfsmount) == 4, "");')


def test_declared_function_type_is_the_kernels_prototype() -> None:
    kernel = Btf.kernel()
    func_id = kernel.find("tcp_reno_cong_avoid", Kind.FUNC)
    assert func_id is not None
    text = kernel.declare([], {"tcp_reno_cong_avoid": func_id})
    assert "typedef __u32 u32;" in text
    assert "typedef void tcp_reno_cong_avoid__t(struct sock *sk, u32 ack, u32 acked);" in text
