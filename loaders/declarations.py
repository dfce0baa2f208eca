# SPDX-License-Identifier: Apache-2.0
"""C declarations for cffi, whose parser takes longer than the rest of a start: what it has parsed is kept on disk."""

from __future__ import annotations

import marshal
import sys
from typing import Any

import _cffi_backend

from . import cache

_NAME = "declarations"


def declare(*texts: str) -> Any:
    """An FFI with the declarations ``texts``: as cffi.FFI().cdef() makes it, but nothing can be added to it."""
    key = cache.key(_NAME, _cffi_backend.__version__, sys.implementation.cache_tag or "", *texts)
    if (stored := cache.load_bytes(key, _NAME)) is None:
        ffi = _parsed(texts)
        try:
            stored = marshal.dumps(_arguments(ffi))
        except OSError:  # no space for temporary files
            return ffi
        cache.store_bytes(key, _NAME, stored)
    return _cffi_backend.FFI(_NAME, **marshal.loads(stored))


def open_library(ffi: Any, name: str) -> Any:
    """The functions of the shared library ``name`` that ``ffi`` declares; raises OSError.

    The library is never unloaded: when the interpreter ends, destructors (ffi.gc) may run after the library object.
    """
    return ffi.dlopen(name, ffi.RTLD_NOW | ffi.RTLD_NODELETE)


def _parsed(texts: tuple[str, ...]) -> Any:
    import cffi

    ffi = cffi.FFI()
    for text in texts:
        ffi.cdef(text)
    return ffi


def _arguments(ffi: Any) -> dict[str, Any]:
    """The arguments of ``_cffi_backend.FFI``: those in the module that cffi generates, which are literals."""
    import ast
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    ffi.set_source(_NAME, None)
    # cffi reports what it writes on stdout.
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        path = Path(directory, f"{_NAME}.py")
        ffi.emit_python_code(str(path))
        tree = ast.parse(path.read_text(encoding="utf-8"))
    [call] = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
