# SPDX-License-Identifier: Apache-2.0
"""Compiled objects on disk, under ``$XDG_CACHE_HOME/ghostbpf/objects``, and parsed declarations beside them.

An entry's name is a hash of everything that its contents depend on; the entry has a checksum of its name and
its body. An entry that is unreadable, damaged, stored under another name, or another user's is ignored and rewritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from .object import Object

_FORMAT = b"ghostbpf object 3\n"
_OBJECTS = "objects"


def directory() -> Path:
    """The directory of this user's caches."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "ghostbpf")


def key(*parts: str) -> str:
    """A hash of ``parts`` with their lengths, which keep parts apart that contain any character."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def load(name: str) -> Object | None:
    """The object stored under ``name``, or None."""
    body = load_bytes(name, _OBJECTS)
    try:
        return None if body is None else Object.from_bytes(body)
    except ValueError:
        return None


def store(name: str, obj: Object) -> None:
    """Store ``obj``; see store_bytes()."""
    store_bytes(name, _OBJECTS, obj.to_bytes())


def load_bytes(name: str, kind: str) -> bytes | None:
    """What is stored under ``name`` in the directory ``kind``, or None."""
    path = _path(name, kind)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            data = file.read()
    except OSError:
        return None
    header, digest, body = (
        data[: len(_FORMAT)],
        data[len(_FORMAT) : len(_FORMAT) + 16],
        data[len(_FORMAT) + 16 :],
    )
    return body if header == _FORMAT and digest == _digest(name, body) else None


def store_bytes(name: str, kind: str, body: bytes) -> None:
    """Store ``body``; on a full disk or in a read-only home nothing is stored, and the next start makes it again."""
    import tempfile  # it imports modules that a start without anything to store does not need

    path = _path(name, kind)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_FORMAT + _digest(name, body) + body)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)


def _path(name: str, kind: str) -> Path:
    return directory() / kind / name


def _digest(name: str, body: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + b"\0" + body, digest_size=16).digest()
