# SPDX-License-Identifier: Apache-2.0
"""The running kernel's types that a start needs: ids, structs and enums by name. Answers are kept on disk.

libbpf parses all types, and then searches all of them for a name: 250 M instructions in a start, where the answers on
disk take one. They are stored under the kernel's identity, and hold as long as that kernel runs. For other questions,
and for those of the compiler, which are many, see btf.py.
"""

from __future__ import annotations

import atexit
import functools
import marshal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import cache
from .btf import Btf, Kind, Member, identity

_DIRECTORY, _FORMAT = "types", "1"
#: More than all programs of this package ask for together; what does not fit is looked up at each start.
_MAX_BYTES = 1 << 17


class Struct(NamedTuple):
    """A struct's ``id``, its ``size`` in bytes, and its named members."""

    id: int
    size: int
    members: Mapping[str, Member]


def find(name: str, kind: Kind) -> int | None:
    """The id of the type ``name`` of ``kind``, or None."""
    answer: int | None = _answers().get(("id", name, int(kind)), lambda: Btf.kernel().find(name, kind))
    return answer


@functools.cache
def struct(name: str) -> Struct:
    """The struct ``name``; raises KernelUnsupported if the kernel has no such struct."""
    id, size, members = _answers().get(("struct", name), lambda: _struct(name))
    return Struct(id, size, {member[0]: Member(*member) for member in members})


def enum(name: str) -> Mapping[str, int]:
    """The enumerators of ``enum name`` and their values; raises KernelUnsupported if the kernel has no such enum."""
    answer: Mapping[str, int] = _answers().get(("enum", name), lambda: Btf.kernel().enum(name))
    return answer


def _struct(name: str) -> tuple[int, int, list[tuple[object, ...]]]:
    kernel = Btf.kernel()
    id = kernel.struct_id(name)
    return id, kernel.size(id), [tuple(vars(member).values()) for member in kernel.members(id).values()]


class _Answers:
    """Answers by question; new answers are stored when this process ends."""

    def __init__(self) -> None:
        self._key = cache.key(_DIRECTORY, _FORMAT, identity(), sys.implementation.cache_tag or "")
        self._known = self._stored()
        self._is_new = False

    def get(self, question: tuple[str | int, ...], ask: Callable[[], Any]) -> Any:
        """The answer to ``question``: the known answer, or what ``ask`` returns. None is not kept."""
        if (answer := self._known.get(question)) is None and (answer := ask()) is not None:
            self._known[question] = answer
            if not self._is_new:
                self._is_new = True
                atexit.register(self._store)
        return answer

    def _stored(self) -> dict[tuple[str | int, ...], Any]:
        body = cache.load_bytes(self._key, _DIRECTORY)
        try:
            stored = marshal.loads(body or b"")
        except (EOFError, ValueError, TypeError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _store(self) -> None:
        # Another process may have stored answers of its own meanwhile.
        body = marshal.dumps(self._stored() | self._known)
        if len(body) <= _MAX_BYTES:
            cache.store_bytes(self._key, _DIRECTORY, body)


@functools.cache
def _answers() -> _Answers:
    return _Answers()
