# SPDX-License-Identifier: Apache-2.0
"""Where guests keep what they can use again: one directory, locks across processes, progress on stderr."""

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
    """The directory of everything kept: `$XDG_CACHE_HOME/ghostbpf/vm`, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification says to ignore a relative path.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    path = root / "ghostbpf" / "vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on `path` (made if missing) against other processes; waits, saying so, if it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path.name}")
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
    """The document in `path`, or None when there is none or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in `path` so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Put `document` in `path`, whole or not at all."""
    write_whole(path, json.dumps(document, indent=1).encode())


@contextmanager
def scratch_dir(home: Path, name: str) -> Iterator[Path]:
    """A temporary directory on the cache's own file system, so that what is made there can be renamed into place.

    The caller holds the lock for what is made under `name`: what an earlier run, killed, has left of it is removed.
    """
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f".new-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".new-{name}-", dir=home) as path:
        yield Path(path)


def say(text: str) -> None:
    """Tell a person what is going on; stdout belongs to the guest's command, so this goes to stderr."""
    print(f"ghostbpf vm: {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Announce a slow step, and how many seconds it took once it is done."""
    say(f"{text} ...")
    start = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - start:.1f} s")
