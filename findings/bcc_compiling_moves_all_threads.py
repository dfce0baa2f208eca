#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bcc 0.31: while one thread compiles, relative paths of all threads mean other files.

Guess: BPF(text=...) works on a text and touches nothing of the caller's process; threads beside it are not concerned.
What happens: bcc changes the directory of the process to that of the kernel's headers, for as long as clang runs, and
back. A process has one directory for all its threads: meanwhile, another thread that opens "log" opens one among the
kernel's headers, or creates it there.
Why it matters here: ghostbpf compiles in a child process, although a thread would be cheaper; so an agent, a tracer
or a test that compiles while others work changes no other directory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from packages import conclude, debian_tree, kernel_headers, run_python

PINS = ("python3=3.13.5-1", "python3-bpfcc=0.31.0+ds-7", "linux-headers-6.12.117+deb13-amd64=6.12.117-1")

SCRIPT = r"""
import os, threading
from bcc import BPF, __version__

seen, compiled = {os.getcwd()}, threading.Event()

def watch():
    while not compiled.wait(0.001):
        seen.add(os.getcwd())

thread = threading.Thread(target=watch, daemon=True)
thread.start()
BPF(text="int nothing(void *ctx) { return 0; }")
compiled.set()
thread.join()
print("bcc", __version__, "directories that another thread saw itself in:", len(seen))
for directory in sorted(seen):
    print("   ", directory)
print("and afterwards:", os.getcwd())
"""

with tempfile.TemporaryDirectory() as directory:
    tree = debian_tree(Path(directory), *PINS)
    out = run_python(tree, SCRIPT, BCC_KERNEL_SOURCE=kernel_headers(tree))
    print(out, end="")
    conclude("a thread that does nothing changes its directory", holds="saw itself in: 2\n" in out)
