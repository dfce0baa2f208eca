#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""glibc 2.41: PTHREAD_EXPLICIT_SCHED with default attributes gives a thread the policy that glibc remembers.

Expected: a thread created with PTHREAD_EXPLICIT_SCHED has the policy in its attributes, by default SCHED_OTHER.
Actual: unless a policy was stored in the attributes, the thread has the policy of its creator's last call of
pthread_setschedparam(), which glibc remembers (SCHED_OTHER before the first). A policy set later by the system call,
which chrt and all other processes use, is ignored. So a thread of SCHED_OTHER creates threads of SCHED_BATCH, and
conversely. The attributes cannot name that policy: they accept only SCHED_OTHER, SCHED_FIFO and SCHED_RR.
Relevance: ghostbpf changes the class of tasks from outside. After `enclave add`, threads that a program creates this
way start outside of the enclave; if the program has entered SCHED_EXT by pthread_setschedparam(), they are in SCHED_EXT
again after `enclave rm`. The script uses SCHED_BATCH for SCHED_EXT: glibc treats both alike, and every kernel has it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from packages import conclude, debian_tree, run_python

PINS = ("python3=3.13.5-1", "libc6=2.41-12+deb13u5")

SCRIPT = r'''
import ctypes, os

libc = ctypes.CDLL(None)
libc.gnu_get_libc_version.restype = ctypes.c_char_p
libc.pthread_self.restype = ctypes.c_ulong
print("glibc", libc.gnu_get_libc_version().decode())

NAMES = {os.SCHED_OTHER: "OTHER", os.SCHED_BATCH: "BATCH"}
EXPLICIT = 1
attr = ctypes.create_string_buffer(64)

def child(*, explicit):
    """The policy of a new thread, whose body is the function sched_getscheduler(0)."""
    libc.pthread_attr_init(attr)
    if explicit:
        libc.pthread_attr_setinheritsched(attr, EXPLICIT)
    thread, result = ctypes.c_ulong(), ctypes.c_void_p()
    body = ctypes.cast(libc.sched_getscheduler, ctypes.c_void_p)
    assert libc.pthread_create(ctypes.byref(thread), attr, body, None) == 0
    assert libc.pthread_join(thread, ctypes.byref(result)) == 0
    return NAMES[result.value or 0]

def show(what):
    me = NAMES[os.sched_getscheduler(0)]
    print(f"{what}: {me} creates {child(explicit=False)}, and explicitly {child(explicit=True)}")

os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
show("system call to BATCH")
me = ctypes.c_ulong(libc.pthread_self())
assert libc.pthread_setschedparam(me, os.SCHED_BATCH, ctypes.byref(ctypes.c_int(0))) == 0
show("pthread_setschedparam to BATCH")
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
show("system call to OTHER")
libc.pthread_attr_init(attr)
print("pthread_attr_setschedpolicy to BATCH:", os.strerror(libc.pthread_attr_setschedpolicy(attr, os.SCHED_BATCH)))
'''

EXPECTED = """\
system call to BATCH: BATCH creates BATCH, and explicitly OTHER
pthread_setschedparam to BATCH: BATCH creates BATCH, and explicitly BATCH
system call to OTHER: OTHER creates OTHER, and explicitly BATCH
pthread_attr_setschedpolicy to BATCH: Invalid argument
"""

with tempfile.TemporaryDirectory() as directory:
    tree = debian_tree(Path(directory), *PINS)
    out = run_python(tree, SCRIPT)
    print(out, end="")
    conclude("a thread of SCHED_OTHER creates one of SCHED_BATCH", holds=out.endswith(EXPECTED))
