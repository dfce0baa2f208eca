# SPDX-License-Identifier: Apache-2.0
"""The database of the RocksDB experiment: made once, and used again if it is of this version."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...loaders import cache
from ...loaders.errors import GhostError
from .programs import ROCKSDB

#: To be changed with the format of the database in native/database.c.
VERSION = 1

#: What a database takes on the disk while it is made: two copies, and files that do not depend on the entries.
_ENTRY_BYTES, _FIXED_BYTES = 100, 8_000_000
#: Beside the files of RocksDB, which leaves files that it does not know.
_MARK = "ghostbpf.json"


def default_path(entries: int) -> Path:
    """Where a database of ``entries`` is kept."""
    return cache.directory() / "rocksdb" / str(entries)


def prepare(path: Path, entries: int, tell: Callable[[str], object]) -> None:
    """Have a database of ``entries`` at ``path``; one that is missing is made, after ``tell`` was called.

    Raises GhostError if another database, or something else, is there.
    """
    if (path / _MARK).exists():
        _check(path, entries)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise GhostError(f"{path} is no database of this experiment", hint="another --rocksdb-db-path")
    _need_room(path, entries)
    tell(f"making a database of {entries:,} entries at {path}")
    program = ROCKSDB.path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # An interrupted creation leaves nothing behind at ``path``.
        with contextlib.ExitStack() as cleanup:
            made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
            cleanup.callback(shutil.rmtree, made, ignore_errors=True)
            done = subprocess.run(
                [program, "create", made / "db", str(entries)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                reason = done.stderr.strip().removeprefix("error: ") or f"status {done.returncode}"
                raise GhostError(
                    reason, hint=f"more room below {path.parent}, fewer --entries, or another --rocksdb-db-path"
                )
            (made / "db" / _MARK).write_text(
                json.dumps({"version": VERSION, "entries": entries}) + "\n", encoding="utf-8"
            )
            if path.exists():
                path.rmdir()
            (made / "db").rename(path)
    except OSError as error:
        raise GhostError(
            f"cannot make the database {path}: {error.strerror}", hint="another --rocksdb-db-path"
        ) from None


def _need_room(path: Path, entries: int) -> None:
    """Raise GhostError before a disk is full: where RocksDB meets that, it may abort without a word on the reason."""
    where = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    needed, free = _FIXED_BYTES + entries * _ENTRY_BYTES, shutil.disk_usage(where).free
    if free < needed:
        raise GhostError(
            f"no space left on device: the database needs {needed / 1e6:,.0f} MB, {where} has {free / 1e6:,.0f} MB",
            hint="fewer --entries, or another --rocksdb-db-path",
        )


def _check(path: Path, entries: int) -> None:
    remedy = f"remove it (rm -r {path}), or another --rocksdb-db-path"
    try:
        found = json.loads((path / _MARK).read_text(encoding="utf-8"))
        version, number = found["version"], found["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        raise GhostError(f"the database {path} has no readable {_MARK}", hint=remedy) from None
    if version != VERSION:
        raise GhostError(f"the database {path} is of version {version}, not {VERSION}", hint=remedy)
    if number != entries:
        raise GhostError(f"the database {path} has {number:,} entries, not {entries:,}", hint=f"--entries {number}")
