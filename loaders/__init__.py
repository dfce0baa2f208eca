# SPDX-License-Identifier: Apache-2.0
"""From C text to BPF that runs in the kernel, with nothing but bcc and libbpf: no kernel headers, no clang
at hand, no skeletons. This package stands alone; a scheduler of your own takes 30 lines of C and 10 of Python:

    from ghostbpf.loaders import Array, Module, abi, compile, sched_ext

    module = Module(compile("fifo.bpf.c"))                      # cached by source, kernel and compiler
    with sched_ext.attach(module, "fifo_", name="fifo"):        # fifo_enqueue, fifo_dispatch … become its ops
        input("scheduling; Enter ends ")
        print(Array(module.maps["queued"], abi.load(), "u64")[0])

(``examples/fifo.bpf.c`` and ``examples/fifo.py`` are this one, whole.)

The C is what bcc takes, with its map macros, and with this besides:

  - each struct, enum and constant of the running kernel is there as soon as it is named;
  - each kernel function (kfunc) can be called by its name; ``#ifdef HAVE_<name>`` asks whether there is one;
  - a callback is ``BPF_PROG(<prefix><op>, arguments…)`` and returns int; ``LINK_CONSTANT(name)`` is a number
    given at link time; quoted includes are found beside the file and in ``bpf/``;
  - globals, string constants, callbacks and calls of functions that are not inlined are what bcc cannot do:
    each is refused with the function and the cure, never miscompiled in silence.

Any operations table of the kernel can be filled (``StructOps.attach``; tcp_congestion_ops, say), programs
attached to tracepoints (``Link.tracepoint``), run on call (``Target.syscall``, ``Program.run``) or over all
objects of a kind (``Iterator``). Everything raises GhostError; see ``errors`` for the tree.
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
