#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Refuse wording that a stranger would have to read twice: tests/lint/words.txt lists it with what to write instead.

    python tests/lint/words.py [FILE...]     default: all that git tracks

Comments and docstrings of Python, comments of C and of shell scripts, and the text of Markdown outside of code are
checked. A comment must not be a question. Exit status 1 if anything is found.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
_C_COMMENT = re.compile(r"/\*(.*?)\*/|//([^\n]*)", re.DOTALL)
_C_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')
_MARKDOWN_CODE = re.compile(
    r"^(```|~~~).*?^\1[^\n]*$|^(?: {4}|\t)[^\n]*$|`[^`\n]*`|<!--.*?-->", re.DOTALL | re.MULTILINE
)
_CODE_IN_TEXT = re.compile(r"``.*?``|`[^`\n]*`")


def _rules() -> list[tuple[re.Pattern[str], str]]:
    lines = (HERE / "words.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return [(re.compile(pattern, re.IGNORECASE | re.MULTILINE), remedy) for pattern, remedy in pairs]


def _python(text: str) -> Iterator[tuple[int, str]]:
    """Comments, those on adjacent lines together, and docstrings: line number and text."""
    block: list[str] = []
    begin = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, words = token.start[0], token.string.lstrip("#: ")
        if block and line == last + 1 and token.line.lstrip().startswith("#"):
            block.append(words)
        else:
            if block:
                yield begin, "\n".join(block)
            block, begin = [words], line
        last = line
    if block:
        yield begin, "\n".join(block)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[0] if node.body else None
            if (
                isinstance(body, ast.Expr)
                and isinstance(body.value, ast.Constant)
                and isinstance(body.value.value, str)
            ):
                yield body.lineno, body.value.value


def _c(text: str) -> Iterator[tuple[int, str]]:
    text = _C_STRING.sub(lambda match: " " * len(match[0]), text)
    for match in _C_COMMENT.finditer(text):
        lines = (match[1] or match[2] or "").splitlines()
        yield text.count("\n", 0, match.start()) + 1, "\n".join(line.strip(" \t*") for line in lines)


def _shell(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") and not line.startswith("#!"):
            yield number, line.lstrip("# \t")


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    yield 1, _MARKDOWN_CODE.sub(lambda match: "\n" * match[0].count("\n"), text)


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text()
    if path.suffix == ".py":
        return _python(text)
    if path.suffix in (".c", ".h"):
        return _c(text)
    if path.suffix == ".md":
        return _markdown(text)
    return _shell(text)


def findings(path: Path) -> Iterator[str]:
    """What is wrong with the wording of ``path``, as "FILE:LINE: TEXT: REMEDY"."""
    rules = _rules()
    is_code = path.suffix != ".md"
    for begin, text in _texts(path):
        text = _CODE_IN_TEXT.sub(lambda match: re.sub(r"[^\n]", "_", match[0]), text)
        for pattern, remedy in rules:
            for match in pattern.finditer(text):
                line = begin + text.count("\n", 0, match.start() + len(match[0]) - len(match[0].lstrip()))
                yield f'{path}:{line}: "{match[0].strip()}": {remedy}'
        if is_code and text.rstrip().endswith("?") and "\n\n" not in text:
            yield f'{path}:{begin}: "{text.strip().splitlines()[-1]}": state it, do not ask it'


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    kinds = {".py", ".c", ".h", ".md", ".sh"}
    return [path for path in map(Path, filter(None, listed)) if path.suffix in kinds and path.exists()]


def main() -> int:
    """Print all findings; 1 if there are any."""
    found = [line for path in [Path(name) for name in sys.argv[1:]] or _tracked() for line in findings(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
