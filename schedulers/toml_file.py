# SPDX-License-Identifier: Apache-2.0
"""TOML files whose errors name the file, the line and the key.

``tomllib`` knows lines of syntax errors only. The lines of keys are found in the text: a header or a key begins its
line, and a key inside an inline table or an array has the line of what it is in.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..loaders.errors import GhostError

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
_KEY = re.compile(r'\s*"?([\w-]+)"?\s*=')
_LAST_STEP = re.compile(r"(\.?[^.\[\]]+|\[\d+\])$")
_SYNTAX = re.compile(r"(?P<reason>.*) \(at line (?P<line>\d+), column \d+\)")


class FileError(GhostError):
    """File ``path`` is wrong at ``key``, in ``line`` (0: unknown), for ``reason``."""

    exit_status = 2

    def __init__(self, path: str, key: str, reason: str, hint: str | None = None, *, line: int = 0):
        where = f"{path}:{line}" if line else path
        super().__init__(f"{where}: {key}: {reason}" if key else f"{where}: {reason}", hint=hint)
        self.path, self.key, self.reason, self.line = path, key, reason, line


class TomlFile:
    """The ``document`` in file ``path``, or in its ``text`` if that is given; raises a ``kind`` of FileError."""

    def __init__(self, path: str, kind: type[FileError] = FileError, text: str | None = None) -> None:
        self.path, self._kind = path, kind
        try:
            self.text = Path(path).read_text(encoding="utf-8") if text is None else text
            self.document: dict[str, Any] = tomllib.loads(self.text)
        except OSError as error:
            raise kind(path, "", error.strerror or str(error)) from None
        except UnicodeDecodeError as error:
            raise kind(path, "", str(error)) from None
        except tomllib.TOMLDecodeError as error:
            place = _SYNTAX.fullmatch(str(error))
            raise kind(
                path, "", place["reason"] if place else str(error), line=int(place["line"]) if place else 0
            ) from None
        except RecursionError:
            raise kind(path, "", "its tables and lists are nested too deep") from None
        self._lines = _lines(self.text)

    def error(self, key: str, reason: str, hint: str | None = None) -> FileError:
        """The error at ``key``, a path such as "child[0].options.slice"; its line, or that of what it is in."""
        known = key
        while known and known not in self._lines:
            known = _LAST_STEP.sub("", known)
        return self._kind(self.path, key, reason, hint, line=self._lines.get(known, 0))

    def check_keys(self, table: Mapping[str, Any], known: Sequence[str], at: str) -> None:
        """Raise the error of a key in ``table``, which is at ``at``, that is not ``known``, with the nearest one."""
        for key in table:
            if key not in known:
                import difflib

                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose from: {', '.join(known)}"
                raise self.error(f"{at}{key}", "there is no such key", hint)


def _lines(text: str) -> dict[str, int]:
    """The lines of headers and keys in TOML ``text``, by their path as in errors, without those in inline tables."""
    found: dict[str, int] = {}
    arrays: Counter[str] = Counter()
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table, names = "", header[2].split(".")
            for level, name in enumerate(names, 1):
                array = table + name
                arrays[array] += header[1] == "[[" and level == len(names)
                table = f"{array}[{arrays[array] - 1}]." if arrays[array] else f"{array}."
            found[table.removesuffix(".")] = number
        elif key := _KEY.match(line):
            found.setdefault(table + key[1], number)
    return found
