# SPDX-License-Identifier: Apache-2.0
# libbpf through cffi in ABI mode: the library that bcc links, without a compiler at run time. libbpf accepts
# option structs that are longer than it knows if the rest is zero, so one cdef serves each version from
# 1.1 (Debian 12) on.

from __future__ import annotations

import os
from typing import Any

from .declarations import declare, open_library
from .errors import BpfError, KernelUnsupported

ffi = declare(
    """
    typedef uint32_t __u32; typedef uint64_t __u64;

    struct btf_type { __u32 name_off; __u32 info; __u32 size_or_type; };
    struct btf;
    struct btf *btf__load_vmlinux_btf(void);
    struct btf *btf__new(const void *data, __u32 size);
    void btf__free(struct btf *);
    __u32 btf__type_cnt(const struct btf *);
    int32_t btf__find_by_name_kind(const struct btf *, const char *name, __u32 kind);
    const struct btf_type *btf__type_by_id(const struct btf *, __u32 id);
    const char *btf__name_by_offset(const struct btf *, __u32 offset);
    int64_t btf__resolve_size(const struct btf *, __u32 id);
    const void *btf__raw_data(const struct btf *, __u32 *size);

    struct btf_dump;
    struct btf_dump_opts { size_t sz; };
    struct btf_dump_emit_type_decl_opts { size_t sz; const char *field_name; int indent_level; bool strip_mods; };
    struct btf_dump *btf_dump__new(const struct btf *, void *printf_fn, void *ctx, const struct btf_dump_opts *);
    void btf_dump__free(struct btf_dump *);
    int btf_dump__dump_type(struct btf_dump *, __u32 id);
    int btf_dump__emit_type_decl(struct btf_dump *, __u32 id, const struct btf_dump_emit_type_decl_opts *);

    struct bpf_map_create_opts {
        size_t sz; __u32 btf_fd, btf_key_type_id, btf_value_type_id, btf_vmlinux_value_type_id;
        __u32 inner_map_fd, map_flags; __u64 map_extra; __u32 numa_node, map_ifindex;
    };
    int bpf_map_create(int type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries,
                       const struct bpf_map_create_opts *);
    int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_delete_elem(int fd, const void *key);
    int bpf_map_get_next_key(int fd, const void *key, void *next_key);

    struct bpf_prog_load_opts {
        size_t sz; int attempts; int expected_attach_type; __u32 prog_btf_fd, prog_flags, prog_ifindex, kern_version;
        __u32 attach_btf_id, attach_prog_fd, attach_btf_obj_fd; const int *fd_array;
        const void *func_info; __u32 func_info_cnt, func_info_rec_size;
        const void *line_info; __u32 line_info_cnt, line_info_rec_size;
        __u32 log_level, log_size; char *log_buf; __u32 log_true_size;
    };
    int bpf_prog_load(int type, const char *name, const char *license, const void *insns, size_t count,
                      struct bpf_prog_load_opts *);
    struct bpf_test_run_opts {
        size_t sz; const void *data_in; void *data_out; __u32 data_size_in, data_size_out;
        const void *ctx_in; void *ctx_out; __u32 ctx_size_in, ctx_size_out; __u32 retval; int repeat;
        __u32 duration, flags, cpu, batch_size;
    };
    int bpf_prog_test_run_opts(int fd, struct bpf_test_run_opts *);
    int bpf_btf_load(const void *data, size_t size, void *opts);

    int bpf_link_create(int prog_fd, int target_fd, int attach_type, const void *opts);
    int bpf_link_detach(int link_fd);
    int bpf_raw_tracepoint_open(const char *name, int prog_fd);
    int bpf_iter_create(int link_fd);
    int bpf_obj_pin(int fd, const char *path);
    struct bpf_obj_get_opts { size_t sz; __u32 file_flags; };
    int bpf_obj_get_opts(const char *path, const struct bpf_obj_get_opts *);
    int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *len);
    int bpf_btf_get_fd_by_id(__u32 id);
    int bpf_map_get_fd_by_id(__u32 id);
    int bpf_prog_get_fd_by_id(__u32 id);
    int bpf_enable_stats(int type);

    struct ring_buffer;
    typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
    struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn, void *ctx, const void *opts);
    void ring_buffer__free(struct ring_buffer *);
    int ring_buffer__poll(struct ring_buffer *, int timeout_ms);
    int ring_buffer__consume(struct ring_buffer *);
    int ring_buffer__epoll_fd(const struct ring_buffer *);

    __u32 libbpf_major_version(void);
    __u32 libbpf_minor_version(void);
    void *libbpf_set_print(void *fn);
    """
)

try:
    lib: Any = open_library(ffi, "libbpf.so.1")
except OSError as error:
    raise KernelUnsupported("libbpf", f"cannot load libbpf: {error}", hint="apt install libbpf1") from None

# Every failure raises an exception with its reason, which libbpf would also print to stderr.
lib.libbpf_set_print(ffi.NULL)


def version() -> tuple[int, int]:
    """The loaded libbpf's major and minor version."""
    return lib.libbpf_major_version(), lib.libbpf_minor_version()


def check(result: int, action: str, *, hint: str | None = None) -> int:
    """Return ``result``; where libbpf returned a negative errno, raise BpfError that names ``action``."""
    if result < 0:
        raise BpfError(action, -result, hint=hint)
    return result


def opts(kind: str, **fields: Any) -> Any:
    """A libbpf option struct ``kind`` with ``fields`` set and ``sz`` filled in."""
    return ffi.new(f"struct {kind} *", {"sz": ffi.sizeof(f"struct {kind}"), **fields})


def text(pointer: Any) -> str:
    """A C string as str."""
    return bytes(ffi.string(pointer)).decode(errors="replace")


def info_by_fd(fd: int, size: int = 256) -> bytes:
    """The kernel's struct bpf_*_info of a map, program, BTF or link: ``size`` raw bytes, zero-padded."""
    info, length = ffi.new(f"char[{size}]"), ffi.new("__u32 *", size)
    check(lib.bpf_obj_get_info_by_fd(fd, info, length), f"describe BPF object {fd}")
    return bytes(ffi.buffer(info, size))


def cloexec(fd: int) -> int:
    """Return ``fd`` after making it non-inheritable: a link inherited by a child would outlive its loader."""
    os.set_inheritable(fd, False)
    return fd
