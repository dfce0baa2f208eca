# SPDX-License-Identifier: Apache-2.0
"""Compiles ghostbpf's BPF programs for a guest's kernel before the guest starts.

The guest's own Python and bcc run on the host's CPUs, in the guest's root, where /sys and /proc tell of the guest's
kernel. The results are in the guest's cache, and compiling takes a fraction of the time that an emulated guest takes.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from . import init
from .btf import btf_section, release_and_version, section, vmlinux_of
from .cache import log, stage
from .request import PACKAGE

#: $1 is the guest's root, $2 a directory with the files that differ from the host's, $3 ghostbpf's directory.
_SCRIPT = f"""\
set -e
mount -t proc proc "$1/proc"
for name in osrelease version; do mount --bind "$2/proc/$name" "$1/proc/sys/kernel/$name"; done
mount --bind "$2/sys" "$1/sys"
mount --bind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1{init.LIBRARY}"
mkdir "$1{init.LIBRARY}/ghostbpf"
mount --bind "$3" "$1{init.LIBRARY}/ghostbpf"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONPATH={init.LIBRARY} XDG_CACHE_HOME={init.STATE}/cache python3 -m ghostbpf.tools.compile_all
"""


def precompile(root: Path, vmlinux: Path, release: str, cpus: int) -> None:
    """Compile what schedulers load for the kernel `vmlinux` with `cpus` CPUs; a failure is only a warning.

    The guest then compiles for itself.
    """
    with tempfile.TemporaryDirectory(prefix="ghostbpf-vm-") as scratch, stage(f"compiling for {release}"):
        _write_files(Path(scratch), vmlinux_of(vmlinux.read_bytes()), cpus)
        result = subprocess.run(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--"),
                *("sh", "-c", _SCRIPT, "sh", str(root), scratch, str(PACKAGE)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    if result.returncode:
        # Of a traceback, this is the line that names the exception.
        plain = [line for line in result.stderr.splitlines() if not line.startswith((" ", "Traceback"))]
        reason = plain[0] if plain else f"status {result.returncode}"
        log(f"warning: cannot compile on this machine, so the guest does: {reason}")


def _write_files(place: Path, elf: bytes, cpus: int) -> None:
    """What the compiler reads of the kernel; see loaders/btf.py and schedulers/topology.py."""
    release, version = release_and_version(elf)
    files = {
        "proc/osrelease": f"{release}\n".encode(),
        "proc/version": f"{version}\n".encode(),
        "sys/kernel/btf/vmlinux": btf_section(elf) or b"",
        "sys/kernel/notes": section(elf, ".notes") or b"",
        "sys/devices/system/cpu/possible": f"0-{cpus - 1}\n".encode(),
    }
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
