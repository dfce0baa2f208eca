# SPDX-License-Identifier: Apache-2.0
"""The cache of guests: one directory, locks across processes, and progress messages on stderr."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """The cache directory, `$XDG_CACHE_HOME/ghostbpf/vm`; created if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification demands that a relative path is ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    path = root / "ghostbpf" / "vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on `path` (created if missing) against other processes; waits with a message if it is locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another run, which holds {path.name}")
            fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


def remove_unless_in_use(tree: Path, lock: Path) -> None:
    """Delete `tree` unless some process holds `lock`."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(tree, ignore_errors=True)
        lock.unlink(missing_ok=True)
    finally:
        os.close(fd)


def read_json(path: Path) -> Any:
    """The document in `path`; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by `data` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write `document` to `path` atomically."""
    write_atomically(path, json.dumps(document, indent=1).encode())


@contextmanager
def scratch_dir(home: Path, name: str) -> Iterator[Path]:
    """A temporary directory on the cache's file system, from which results can be renamed into place.

    The caller holds the lock for `name`; leftovers of a killed run are removed.
    """
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f".new-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".new-{name}-", dir=home) as path:
        yield Path(path)


def log(text: str) -> None:
    """Print a progress message to stderr: stdout is the guest's command's."""
    print(f"ghostbpf vm: {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Log the start of a slow step, and how many seconds it took."""
    log(f"{text} ...")
    start = time.monotonic()
    yield
    log(f"{text}: {time.monotonic() - start:.1f} s")
