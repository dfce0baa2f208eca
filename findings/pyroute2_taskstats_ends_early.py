#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pyroute2 0.8.1: more than a third of the kernel's taskstats is dropped, without a change of its version.

Expected: a decoded taskstats of version 14 or later has the fields of that version: delays of memory reclaim,
thrashing, compaction, copy-on-write and interrupts, and the maximum and minimum of each.
Actual: the decoder's list of fields ends at cpu_scaled_run_real_total, as in Linux 2.6.30. Later bytes are dropped
silently, but "version" is the kernel's. On all kernels, a program that selects fields by version gets None or a
KeyError.
Relevance: `ghostbpf trace delays` compares BPF's sums with the kernel's, and decodes the later fields itself.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from packages import conclude, pip_packages

PIN = "pyroute2==0.8.1"
LAST = "cpu_scaled_run_real_total"
LAST_END = 312  # the end of that u64 in struct taskstats, include/uapi/linux/taskstats.h
HEADERS = 20 + 4 + 8 + 4  # of the generic netlink message, the aggregate, its pid, and the statistics

with tempfile.TemporaryDirectory() as directory:
    sys.path.insert(0, str(pip_packages(Path(directory), PIN)))
    from pyroute2 import TaskStats  # type: ignore[import-untyped]

    with TaskStats() as socket:
        socket.bind()
        (message,) = socket.get_pid_stat(os.getpid())
    stats = message.get_attr("TASKSTATS_TYPE_AGGR_PID").get_attr("TASKSTATS_TYPE_STATS")
    size, fields = message["header"]["length"] - HEADERS, list(stats.keys())
    print(f"kernel {platform.release()}, {PIN}: taskstats version {stats['version']}, {size} bytes")
    print(f"{len(fields)} fields; the last one, {fields[-1]}, ends at byte {LAST_END}")
    conclude(f"{size - LAST_END} bytes of it are dropped", holds=fields[-1] == LAST and size > LAST_END)
