#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bcc 0.31: while one thread compiles, relative paths of all threads resolve to other files.

Expected: BPF(text=...) compiles a text and changes no state of the process.
Actual: while clang runs, bcc changes the working directory of the process, and so of all its threads, to that of the
kernel's headers. If another thread opens "log" meanwhile, it opens or creates a file among the headers.
Relevance: ghostbpf compiles in a child process, although a thread would be cheaper, so that agents, tracers and tests
keep their working directory.
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
print("bcc", __version__, "working directories of another thread:", len(seen))
for directory in sorted(seen):
    print("   ", directory)
print("and afterwards:", os.getcwd())
"""

with tempfile.TemporaryDirectory() as directory:
    tree = debian_tree(Path(directory), *PINS)
    out = run_python(tree, SCRIPT, BCC_KERNEL_SOURCE=kernel_headers(tree))
    print(out, end="")
    conclude("the working directory of another thread changes", holds="another thread: 2\n" in out)
