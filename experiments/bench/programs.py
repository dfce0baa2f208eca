# SPDX-License-Identifier: Apache-2.0
"""The programs that workloads run: those of other packages are looked up, and our own is compiled.

``python -m ghostbpf.experiments.bench.programs`` compiles ours beside its source, for guests, which have no compiler.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from ...loaders import cache
from ...loaders.errors import GhostError

SOURCE = Path(__file__).parent / "native" / "loads.c"
_FLAGS = ("-O2", "-pthread")


def find(name: str, package: str) -> str:
    """The path of program ``name``; raises GhostError with the Debian ``package`` that has it."""
    if (path := shutil.which(name)) is None:
        raise GhostError(f"{name} is missing", hint=f"apt install {package}")
    return path


def loads() -> Path:
    """Our own loads: as `make setup` has compiled them, or else compiled once into the cache."""
    for path in (SOURCE.parent / _name(), cache.directory() / "programs" / _name()):
        if _is_usable(path):
            return path
    _compile(path)
    return path


def _name() -> str:
    """The file's name, with a hash of all that it is made of."""
    return f"loads-{cache.key(SOURCE.read_text(), *_FLAGS, os.uname().machine)}"


def _is_usable(path: Path) -> bool:
    """Whether it is there, and no user but its owner and root could have written it."""
    try:
        status = path.stat()
    except OSError:
        return False
    is_safe = status.st_uid in (0, os.geteuid(), SOURCE.stat().st_uid) and not status.st_mode & stat.S_IWOTH
    return is_safe and os.access(path, os.X_OK)


def _compile(path: Path, *flags: str) -> None:
    compiler = find("cc", "gcc")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            target = Path(directory, path.name)
            command = [compiler, *_FLAGS, *flags, "-o", str(target), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise GhostError(f"{' '.join(command)} fails: {done.stderr.strip()}", hint="apt install gcc libc6-dev")
            target.replace(path)
    except OSError as error:
        raise GhostError(f"cannot compile {SOURCE.name} into {path.parent}: {error.strerror}") from None


def _main() -> None:
    for old in SOURCE.parent.glob("loads-*"):
        old.unlink()
    # Linked statically, it also runs in a guest whose C library is older.
    try:
        _compile(SOURCE.parent / _name(), "-static")
    except GhostError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _main()
