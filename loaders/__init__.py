# SPDX-License-Identifier: Apache-2.0
"""From C text to BPF that runs in the kernel, with bcc and libbpf alone: no kernel headers, no clang binary,
no skeletons. This package stands alone; a scheduler takes 30 lines of C and 10 of Python:

    from ghostbpf.loaders import Array, Module, abi, compile, sched_ext

    module = Module(compile("fifo.bpf.c"))                      # cached by source, kernel and compiler
    with sched_ext.attach(module, "fifo_", name="fifo"):        # fifo_enqueue, fifo_dispatch … become its ops
        input("scheduling; Enter ends ")
        print(Array(module.maps["queued"], abi.load(), "u64")[0])

(``examples/fifo.bpf.c`` and ``examples/fifo.py`` are the complete example.)

The C is bcc's dialect with its map macros, extended:

  - each struct, enum and constant of the running kernel is declared where the source names it;
  - each kernel function (kfunc) can be called by its name; ``#ifdef HAVE_<name>`` tests whether the kernel has it;
  - ``TYPE_ID(name)`` is the kernel's id of a struct, for bpf_rdonly_cast();
  - a callback is ``BPF_PROG(<prefix><op>, arguments…)`` and returns int; ``LINK_CONSTANT(name)`` is a number
    bound at link time; quoted includes are searched for beside the file and in ``bpf/``;
  - ``LINK_ADDRESS(name)`` is the address of a map, or of a function of the source for the kernel to call back;
  - bcc cannot compile globals, string constants, and calls of functions that are not inlined: each raises
    LintError with the function's name and a hint, and none is miscompiled silently.

``StructOps.attach`` fills any operations table of the kernel (tcp_congestion_ops, for example). Programs attach
to tracepoints (``Link.tracepoint``), run when called (``Target.syscall``, ``Program.run``) or iterate over all
objects of a kind (``Iterator``). Every error is a GhostError; ``errors`` shows the tree.
"""

from . import abi, sched_ext
from .attach import Iterator, Link, Sampler, Samplers
from .btf import Btf
from .compiler import compile
from .errors import (
    AttachError,
    BpfError,
    CompileError,
    GhostError,
    KernelUnsupported,
    LinkError,
    LintError,
    PermissionMissing,
    VerifierError,
)
from .link import Module, Program, ProgramType, Target
from .maps import Array, Hash, Map, MmapArray, PerCpuArray, RingBuffer
from .object import Object
from .struct_ops import StructOps

__all__ = [
    "Array",
    "AttachError",
    "BpfError",
    "Btf",
    "CompileError",
    "GhostError",
    "Hash",
    "Iterator",
    "KernelUnsupported",
    "Link",
    "LinkError",
    "LintError",
    "Map",
    "MmapArray",
    "Module",
    "Object",
    "PerCpuArray",
    "PermissionMissing",
    "Program",
    "ProgramType",
    "RingBuffer",
    "Sampler",
    "Samplers",
    "StructOps",
    "Target",
    "VerifierError",
    "abi",
    "compile",
    "sched_ext",
]
