# SPDX-License-Identifier: Apache-2.0
"""One translation unit from a ``.bpf.c`` file and its quoted includes.

bcc rewrites map accesses in the main file only. So each quoted include is expanded in place, once, with ``#line``
marks: headers can have map definitions and helpers, and diagnostics point at the user's file and line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import CompileError, Diagnostic

#: Searched for quoted includes after the including file's own directory.
BPF_DIR = Path(__file__).resolve().parent.parent / "bpf"

# Only a pattern that begins with a letter of its own is searched for fast: what is before the # is checked afterwards.
_INCLUDE = re.compile(r'#[ \t]*include[ \t]*"([^"]+)"[^\n]*$', re.MULTILINE)
_LINE_MARK = "\n#line "
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """``text`` is the whole translation unit; ``files`` are the paths that it consists of."""

    path: Path
    text: str
    files: tuple[Path, ...]

    @property
    def code(self) -> str:
        """The text without comments, for searches for names."""
        return _COMMENT.sub(" ", self.text)

    @property
    def identity(self) -> str:
        """The text without the paths of its files: the same for each copy of them."""
        before, *marked = f"\n{self.text}".split(_LINE_MARK)
        return _LINE_MARK.join([before, *(part.partition("\n")[2] for part in marked)])


def read(path: str | Path) -> Source:
    """Join ``path`` and its quoted includes; raises CompileError if a file is unreadable."""
    top = Path(path).absolute()
    seen: list[Path] = []
    return Source(top, _expand(top, seen, included_by=None), tuple(seen))


def _expand(path: Path, seen: list[Path], included_by: tuple[Path, int] | None) -> str:
    if path in seen:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        at, line = included_by or (path, 0)
        diagnostic = Diagnostic(str(at), line, 0, "error", f"cannot read {path}: {error.strerror}")
        raise CompileError(str(path), (diagnostic,), "") from None
    seen.append(path)
    parts, end = [f'#line 1 "{path}"\n'], 0
    for match in _INCLUDE.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        if text[start : match.start()].strip(" \t"):
            continue
        line = text.count("\n", 0, start) + 1
        parts += [
            text[end:start],
            _expand(_locate(match[1], path), seen, (path, line)),
            f'\n#line {line + 1} "{path}"',
        ]
        end = match.end()
    return "".join([*parts, text[end:], "\n"])


def _locate(name: str, includer: Path) -> Path:
    # Normalized, so that "../a.h" and "a.h" are the same file.
    beside = Path(os.path.normpath(includer.parent / name))
    return beside if beside.exists() else BPF_DIR / name
