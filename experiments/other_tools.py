# SPDX-License-Identifier: Apache-2.0
"""Checks the rows of docs/other-tools.md whose tools need more Debian packages, in a guest that has them.

    python -m ghostbpf.experiments.other_tools [KERNEL [ROW...]]

Three spinners share CPU 1 under Biff, and each tool runs on them. A row that differs from the page is marked, and the
exit status is 1. This is not part of the tests: it downloads some 200 MB.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from ..loaders.errors import GhostError
from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclaves
from ..schedulers.registry import POLICIES
from ..vm import Guest, run

PACKAGES = ("htop", "schedtool", "tuna", "bpftrace", "systemd", "golang-go", "default-jre-headless")
_LIMIT_S = 900
_GUEST_S = 3600

#: A manager of units that is not the first process: it looks for that directory, and for nothing else of a booted one.
_MANAGER = (
    "mkdir -p /run/systemd/system /tmp/u; export XDG_RUNTIME_DIR=/tmp/u; [ -S /tmp/u/systemd/private ] || "
    "setsid /usr/lib/systemd/systemd --user > /tmp/systemd.out 2>&1 < /dev/null & "
    "until [ -S /tmp/u/systemd/private ]; do sleep 0.1; done; "
)
_WHICH = "grep -w policy /proc/self/sched"
_OTHER, _EXT = r"policy\s*:\s*0", r"policy\s*:\s*7"
#: In the enclave, which has CPU 1 alone.
_INSIDE = "ghostbpf enclave add 1 $$ > /dev/null && "
_PROGRAM = r'package main\nimport "runtime"\nfunc main() {{ println(runtime.NumCPU(), runtime.GOMAXPROCS(0)) }}'
_GO = (
    "cd /tmp && export HOME=/tmp GOTOOLCHAIN=local GO111MODULE=off && "
    f"printf '{_PROGRAM}' > cpus.go && go build -o cpus cpus.go && "
)
#: The log has what Runtime.availableProcessors() says, and by which the JVM sizes its own pools.
_JAVA = "java -Xlog:gc+init -version"


def _in_unit(command: str) -> str:
    # --wait and --pipe would need a message bus, too.
    return (
        f"rm -f /tmp/out; systemd-run --user -q sh -c '{command} > /tmp/out 2>&1; echo end >> /tmp/out' && "
        "until grep -qs end /tmp/out; do sleep 0.1; done; cat /tmp/out"
    )


#: Tool, command for its version, command ({pid}: a task in an enclave), and pattern of the output.
ROWS = (
    (
        "systemd CPUSchedulingPolicy=ext",
        "systemctl --version",
        f"{_MANAGER} systemd-run --user -q -p CPUSchedulingPolicy=ext true",
        r"Failed to parse CPUSchedulingPolicy: ext",
    ),
    ("systemd-run from inside", "systemctl --version", f"{_MANAGER} {_INSIDE} {_in_unit(_WHICH)}", _OTHER),
    (
        "systemd-run --scope from inside",
        "systemctl --version",
        f"{_MANAGER} {_INSIDE} systemd-run --user --scope -q {_WHICH}",
        _EXT,
    ),
    (
        "systemd unit of ghostbpf run",
        "systemctl --version",
        f"{_MANAGER} {_in_unit(f'ghostbpf run biff --cpus 2 -- {_WHICH}')}",
        _EXT,
    ),
    ("nproc", "nproc --version", f"{_INSIDE} nproc", r"(?m)^4$"),
    ("Java", "java -version", _INSIDE + _JAVA, r"CPUs: 4 total, 4 available"),
    ("Go", "go version", f"{_GO} {_INSIDE} ./cpus", r"(?m)^4 4$"),
    (
        "htop",
        "htop --version",
        "export TERM=xterm; timeout 6 script -qc 'stty cols 100 rows 30; htop -C -p {pid}' /dev/null",
        r"{pid} .*\b20 .*\b0 ",
    ),
    ("schedtool", "dpkg-query -W schedtool", "schedtool {pid}", r"POLICY 7\s+<UNKNOWN>"),
    ("tuna", "tuna --version", "tuna show_threads -t {pid}", r"(?m)^\s*{pid}\s+N\s"),
    ("bpftrace runqlat", "bpftrace --version", "timeout -s INT 75 runqlat.bt", r"@usecs:\s*\n(.*\n)*.*\[64K, 128K\)"),
    ("bpftrace runqlen", "bpftrace --version", "timeout -s INT 75 runqlen.bt", r"(?i)error"),
    ("bcc runqlat", "dpkg-query -W bpfcc-tools", "runqlat-bpfcc 5 1", r"static (assertion|_assert)|static_assert"),
    ("bcc runqlen", "dpkg-query -W bpfcc-tools", "runqlen-bpfcc 5 1", r"runqlen\s.*\n\s*0\s"),
)


def main() -> int:
    """Boot a guest with the tools, and run this there; in that guest, run the rows."""
    if os.environ.get("GHOSTBPF_OTHER_TOOLS"):
        return _rows(sys.argv[1:])
    guest = Guest(
        kernel=sys.argv[1] if sys.argv[1:] else "newest",
        cpus=4,
        packages=PACKAGES,
        headers=True,
        environment={"GHOSTBPF_OTHER_TOOLS": "1"},
    )
    return run(["python3", "-m", "ghostbpf.experiments.other_tools", *sys.argv[2:]], guest, timeout=_GUEST_S)


def _rows(names: list[str]) -> int:
    different = 0
    rows = [row for row in ROWS if not names or any(name in row[0] for name in names)]
    with _spinners(3) as pids:
        for tool, version, command, expected in rows:
            words = command.format(pid=pids[0])
            is_as_expected = re.search(expected.replace("{pid}", str(pids[0])), answer := _answer(words)) is not None
            different += not is_as_expected
            print(f"{'ok ' if is_as_expected else 'NOT'} {tool} ({_answer(version).strip()}): {words}")
            print("\n".join(f"      {line}" for line in answer.splitlines()[:60]), flush=True)
    return int(different > 0)


@contextlib.contextmanager
def _spinners(number: int) -> Iterator[list[int]]:
    with Enclaves.temporary(POLICIES["biff"], CpuSet([1])) as enclave:
        children = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(number)]
        try:
            for child in children:
                enclave.add_process(child.pid)
            yield [child.pid for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()


def _answer(command: str) -> str:
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GhostError(f"{command} did not end within {_LIMIT_S} s") from None
    return done.stdout.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
