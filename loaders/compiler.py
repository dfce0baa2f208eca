# SPDX-License-Identifier: Apache-2.0
"""From a ``.bpf.c`` file to an Object: cached, or compiled by bcc in a child process."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from . import _bcc, cache, headers, lint, source
from .btf import Btf, identity
from .errors import CompileError, Diagnostic, GhostError, PermissionMissing
from .object import Object

_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?P<column>\d+): (?P<severity>[a-z ]+): (?P<text>.*)$", re.M
)
_INCOMPLETE = re.compile(r"incomplete (?:definition of )?type '((?:struct|union) \w+)'")
_REFUSED = re.compile(r"could not open bpf map.*Operation not permitted")
_NO_BTF = re.compile(r"open the maps' BTF.*Operation not permitted")
_UNDECLARED = re.compile(r"(?:implicit declaration of|call to undeclared) function '(\w+)'")


def compile(path: str | Path, defines: Mapping[str, int | str] | None = None) -> Object:
    """Compile the BPF C file ``path`` with ``defines`` as macros, or take it from the cache.

    The result depends only on the source with its includes, the defines, the running kernel's types and bcc's
    version. Raises CompileError (with diagnostics), LintError or KernelUnsupported.
    """
    unit, macros, name = _inputs(path, defines)
    if (obj := cache.load(name)) is None:
        obj = _compile(unit, macros)
        lint.lint(obj)
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
        unit.path.name, unit.identity, repr(sorted(macros.items())), identity(), _bcc.version(), _own_identity()
    )
    return unit, macros, key


@functools.cache
def _own_identity() -> str:
    """The text of the modules that shape the compiler's input and output; equal in all checkouts of it."""
    return "".join(Path(module.__file__ or "").read_text() for module in (_bcc, headers, lint, source))


def _compile(unit: source.Source, macros: dict[str, str]) -> Object:
    generated = headers.generate(unit.code, Btf.kernel())
    with _scratch() as scratch:
        tree, result, output = Path(scratch, "tree"), Path(scratch, "object"), Path(scratch, "output")
        generated.write(tree)
        child = os.fork()
        if child == 0:
            _in_child(unit, generated, tree, macros, result, output)
        _, status = os.waitpid(child, 0)
        messages = output.read_text(errors="replace") if output.exists() else ""
        if status == 0 and result.exists():
            return Object.from_bytes(result.read_bytes())
    raise _error(unit, status, messages)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    try:
        with tempfile.TemporaryDirectory(prefix="ghostbpf-") as scratch:
            yield scratch
    except OSError as error:
        raise GhostError(f"cannot compile: {error}", hint=f"free some space in {_temporary()}, or set TMPDIR") from None


def _temporary() -> str:
    with contextlib.suppress(OSError):
        return tempfile.gettempdir()
    return "/tmp"


def _in_child(
    unit: source.Source,
    generated: headers.Headers,
    tree: Path,
    macros: dict[str, str],
    result: Path,
    output: Path,
) -> None:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # If LLVM aborts, its own message is the reason; Python's traceback would hide it.
        faulthandler.disable()
        fd = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        obj = _bcc.compile_text(unit.path.name, unit.text, generated, tree, macros)
        if obj is not None:
            result.write_bytes(obj.to_bytes())
            status = 0
    except GhostError as error:
        os.write(2, f"{error}\n{error.hint or ''}\n".encode())
    except Exception:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _error(unit: source.Source, status: int, messages: str) -> GhostError:
    if _REFUSED.search(messages):
        return PermissionMissing("CAP_BPF", f"compile {unit.path}, which makes maps")
    if _NO_BTF.search(messages):
        return PermissionMissing("CAP_SYS_ADMIN", f"compile {unit.path}")
    if os.WIFSIGNALED(status):
        messages += f"\nthe compiler was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    diagnostics = tuple(
        Diagnostic(m["file"], int(m["line"]), int(m["column"]), m["severity"], m["text"])
        for m in _DIAGNOSTIC.finditer(messages)
        if "warning" not in m["severity"]
    )
    return CompileError(str(unit.path), diagnostics, messages, hint=_hint(messages))


def _hint(messages: str) -> str | None:
    if unknown := _UNDECLARED.search(messages):
        return f"this kernel has no function {unknown[1]}: guard its use with #ifdef HAVE_{unknown[1]}"
    if unknown := _INCOMPLETE.search(messages):
        return f"declare the type in the source: {unknown[1]};"
    return None
