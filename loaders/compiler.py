# SPDX-License-Identifier: Apache-2.0
"""From a ``.bpf.c`` file to an Object: cached, or compiled by compilation.py."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from . import cache, libbcc, source
from .btf import identity
from .errors import GhostError
from .object import Object

#: The modules that shape the compiler's input and output.
_SHAPING = ("_bcc.py", "headers.py", "lint.py", "source.py")


def compile(path: str | Path, defines: Mapping[str, int | str] | None = None) -> Object:
    """Compile the BPF C file ``path`` with ``defines`` as macros, or take it from the cache.

    The result depends only on the source with its includes, the defines, the running kernel's types and bcc's
    version. Raises CompileError (with diagnostics), LintError or KernelUnsupported.
    """
    unit, macros, name = _inputs(path, defines)
    if (obj := cache.load(name)) is None:
        from .compilation import compile_unit

        obj = compile_unit(unit, macros)
        cache.store(name, obj)
    return obj


@contextlib.contextmanager
def ahead(path: str | Path, defines: Mapping[str, int | str] | None = None) -> Iterator[None]:
    """Compile ``path`` into the cache on another CPU while the block runs.

    Errors are not reported: the compile() that follows raises them.
    """
    child = 0
    with contextlib.suppress(GhostError):
        _, _, name = _inputs(path, defines)
        child = 0 if cache.load(name) else os.fork() or _compile_and_exit(path, defines)
    try:
        yield
    finally:
        if child:
            os.waitpid(child, 0)


def _compile_and_exit(path: str | Path, defines: Mapping[str, int | str] | None) -> NoReturn:
    try:
        compile(path, defines)
    finally:
        os._exit(0)


def _inputs(path: str | Path, defines: Mapping[str, int | str] | None) -> tuple[source.Source, dict[str, str], str]:
    """The translation unit, its macros, and the cache key of the result."""
    unit = source.read(path)
    macros = {name: str(value) for name, value in (defines or {}).items()}
    key = cache.key(
        unit.path.name, unit.identity, repr(sorted(macros.items())), identity(), libbcc.version(), _own_identity()
    )
    return unit, macros, key


@functools.cache
def _own_identity() -> str:
    """The text of the modules that shape the compiler's input and output; equal in all checkouts of it."""
    return "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SHAPING)
