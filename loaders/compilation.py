# SPDX-License-Identifier: Apache-2.0
"""One run of bcc, in a child process: it writes the object to a file, or its messages become an error.

compiler.py imports this module only to compile: a start that finds its objects in the cache does without it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from . import _bcc, headers, lint, source
from .btf import Btf
from .errors import CompileError, Diagnostic, GhostError, PermissionMissing
from .object import Object

_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?P<column>\d+): (?P<severity>[a-z ]+): (?P<text>.*)$", re.M
)
_INCOMPLETE = re.compile(r"incomplete (?:definition of )?type '((?:struct|union) \w+)'")
_REFUSED = re.compile(r"could not open bpf map.*Operation not permitted")
_NO_BTF = re.compile(r"open the maps' BTF.*Operation not permitted")
_UNDECLARED = re.compile(r"(?:implicit declaration of|call to undeclared) function '(\w+)'")


def compile_unit(unit: source.Source, macros: dict[str, str]) -> Object:
    """Compile and check ``unit``; raises what compiler.compile() raises."""
    generated = headers.generate(unit.code, Btf.kernel())
    with _scratch() as scratch:
        tree, result, output = Path(scratch, "tree"), Path(scratch, "object"), Path(scratch, "output")
        generated.write(tree)
        child = os.fork()
        if child == 0:
            _in_child(unit, generated, tree, macros, result, output)
        _, status = os.waitpid(child, 0)
        messages = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        if status == 0 and result.exists():
            obj = Object.from_bytes(result.read_bytes())
            lint.lint(obj)
            return obj
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
