# SPDX-License-Identifier: Apache-2.0
"""The calls of the C library that agents make, by what the kernel shows of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ghostbpf.loaders import libc


def test_current_cpu_is_the_one_that_the_thread_is_bound_to() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            assert libc.current_cpu() == cpu
    finally:
        os.sched_setaffinity(0, allowed)


def run(code: str) -> str:
    """What ``code`` prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"from ghostbpf.loaders import libc\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_timer_slack_is_set() -> None:
    assert run("libc.set_timer_slack(12345); print(open('/proc/self/timerslack_ns').read())").split() == ["12345"]


def test_locked_memory_covers_the_whole_process() -> None:
    code = "import mmap; libc.lock_memory(); later = mmap.mmap(-1, 1 << 24); print(open('/proc/self/status').read())"
    try:
        status = run(code)
    except subprocess.CalledProcessError as error:
        if "mlockall: " in error.stderr:
            pytest.skip("locking memory takes CAP_IPC_LOCK or a higher limit")
        raise
    locked, size = (int(re.findall(rf"^{name}:\s+(\d+) kB$", status, re.M)[0]) for name in ("VmLck", "VmSize"))
    assert locked > size // 2


def test_refused_call_raises_with_the_reason() -> None:
    with pytest.raises(OSError, match=r"prctl: Invalid argument"):
        libc.set_death_signal(1000)


def test_death_signal_ends_a_process_whose_parent_dies(tmp_path: Path) -> None:
    report = tmp_path / "signal"
    code = f"""
import os, signal, time
ready, tell = os.pipe()
if not os.fork():
    def note(number, frame):
        open({str(report)!r}, "w").write(str(number))
        os._exit(0)
    signal.signal(signal.SIGTERM, note)
    libc.set_death_signal(signal.SIGTERM)
    os.write(tell, b"x")
    time.sleep(60)
os.read(ready, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The orphan holds the pipes of its output open, so this returns when the orphan has ended.
    done = subprocess.run(
        [sys.executable, "-c", f"from ghostbpf.loaders import libc\n{code}"], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert report.read_text() == str(int(signal.SIGTERM))
