#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bcc 0.31: a string literal is a null pointer at run time, and the program loads.

Expected: the address of a string literal is not null, as in standard C, or the compiler reports an error.
Actual: bcc takes the code of clang's object, but neither its read-only data nor its relocations. The 64-bit load of the
address keeps its placeholder, 0, without a message. The verifier knows that the register is 0, follows the branch for
null alone, and loads the program, which returns the wrong result. The address of a global variable is also 0; there the
verifier rejects the access and names neither the variable nor the cause.
Relevance: ghostbpf compiles with bcc. Its lint finds such loads in the bytecode and reports the C function.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from packages import conclude, debian_tree, kernel_headers, run_python

PINS = ("python3=3.13.5-1", "python3-bpfcc=0.31.0+ds-7", "linux-headers-6.12.117+deb13-amd64=6.12.117-1")

SCRIPT = r'''
import ctypes, platform, struct
from bcc import BPF, __version__

bpf = BPF(text="""
int is_null(void *ctx) { const char *volatile s = "hello"; return s == 0; }
""")
code = bpf.dump_func("is_null")
print("bcc", __version__, "kernel", platform.release())
for at in range(0, len(code), 8):
    print("   ", code[at:at + 8].hex(" "))
program = bpf.load_func("is_null", BPF.SOCKET_FILTER)

BPF_SYSCALL, BPF_PROG_TEST_RUN = 321, 10
frame = ctypes.create_string_buffer(64)
fields = struct.pack("=IIIIQQII", program.fd, 0, 64, 0, ctypes.addressof(frame), 0, 1, 0)
attr = ctypes.create_string_buffer(fields, 128)
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(BPF_SYSCALL, BPF_PROG_TEST_RUN, attr, 128):
    raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
print("is_null returned", struct.unpack_from("=I", attr.raw, 4)[0])
'''

with tempfile.TemporaryDirectory() as directory:
    tree = debian_tree(Path(directory), *PINS)
    out = run_python(tree, SCRIPT, BCC_KERNEL_SOURCE=kernel_headers(tree))
    print(out, end="")
    conclude('in a program that loads, "hello" == 0 is true', holds="is_null returned 1" in out)
