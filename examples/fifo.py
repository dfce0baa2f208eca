#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run fifo.bpf.c as the scheduler of the whole machine for a few seconds: python3 fifo.py [SECONDS]"""

import sys
import time
from pathlib import Path

from ghostbpf.loaders import Array, Module, abi, compile, sched_ext

module = Module(compile(Path(__file__).with_name("fifo.bpf.c")))
with sched_ext.attach(module, "fifo_", name="fifo"):
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
    print("queued", Array(module.maps["queued"], abi.load(), "u64")[0])
