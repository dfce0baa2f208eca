# SPDX-License-Identifier: Apache-2.0
"""What the kernel's verifier does to accept the programs: each start of a scheduler waits for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ghostbpf.experiments.load_cost import loads
from ghostbpf.schedulers.registry import POLICIES

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent(on="oldest")]

#: Instructions that the verifier follows for one program. The kernel's limit is a million; the dearest takes 83,000, on
#: 6.16. A loop whose rounds differ for the verifier multiplies its number, on some kernels only.
_MOST = 120_000


#: Of a mount namespace of its own, so that no other test sees these CPUs.
_WITH_CPUS = """
mount --bind "$1" /sys/devices/system/cpu/possible
shift
exec "$@"
"""


@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=() if name == "fifo_centralized" else pytest.mark.soak) for name in POLICIES]
)
def test_no_loop_multiplies_what_the_verifier_follows(policy: str) -> None:
    rows = loads(policy)
    assert {"core_dispatch", "call_resize"} <= {row[0] for row in rows}
    assert all(row[2] > 0 for row in rows)
    assert [row for row in rows if row[2] > _MOST] == []


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.xfail(
    os.uname().release.startswith("6.16."),
    reason="the verifier refuses call_resize: LLVM chooses a word of its argument by a modified context pointer",
    raises=AssertionError,
    strict=True,
)
def test_programs_for_512_cpus_load(tmp_path: Path) -> None:
    possible = tmp_path / "possible"
    possible.write_text("0-511\n")
    within = ["unshare", "--mount", "sh", "-ec", _WITH_CPUS, "sh", possible]
    line = [sys.executable, "-m", "ghostbpf.tools.cli", "run", "biff", "--", "cat", "/sys/kernel/sched_ext/root/ops"]
    done = subprocess.run([*within, *line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ghostbpf\n"), done.stderr
