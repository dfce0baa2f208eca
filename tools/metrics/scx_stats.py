# SPDX-License-Identifier: Apache-2.0
"""scx's statistics protocol, as its crate scx_stats has it: a request and a response are a line of JSON each.

    {"req":"stats","args":{"target":"top"}}   ->  {"errno":0,"args":{"resp":{"up":1,"enclaves":{"1":{…}},…}}}
    {"req":"stats_meta"}                      ->  {"errno":0,"args":{"resp":{"Core":{"fields":{…},…},…}}}
    {"req":"other"}                           ->  {"errno":22,"args":{"resp":"unknown command \\"other\\""}}

The statistics are the metrics of declarations.py: a scope is a struct, and a scope with a label is a dictionary of
structs in the struct Core, by that label. ``user`` has what scx's scxstats_to_openmetrics.py wants to know; it makes
the same names and labels of it.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from typing import Any

from ...schedulers.snapshot import Snapshot
from .declarations import Metric, Scope, scopes

#: The socket of the root scheduler, where scx's tools look.
DEFAULT_PATH = "/var/run/scx/root/stats"

_TOP, *_MEMBERS = scopes(per_cpu=False)
#: For scxstats_to_openmetrics.py: the field is not a metric.
_SKIP = {"_om_skip": "true"}


class BadRequest(ValueError):
    """A request that is answered with EINVAL."""


def answer(line: bytes, read: Callable[[], Snapshot]) -> bytes:
    """The response to one line; ``read`` takes a snapshot."""
    try:
        number, response = 0, _respond(line, read)
    except BadRequest as error:
        number, response = errno.EINVAL, str(error)
    document = {"errno": number, "args": {"resp": response}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def _respond(line: bytes, read: Callable[[], Snapshot]) -> Any:
    name, arguments = _parse(line)
    if name == "stats_meta":
        return meta()
    if name != "stats":
        raise BadRequest(f'unknown command "{name}"')
    if (target := arguments.get("target", "top")) != "top":
        raise BadRequest(f'unknown stat target "{target}"')
    return stats(read())


def _parse(line: bytes) -> tuple[str, dict[str, str]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested a thousand deep
        raise BadRequest(f"a request is a line of JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("req"), str):
        raise BadRequest('a request has the string "req"')
    arguments = request.get("args", {})
    if not isinstance(arguments, dict) or not all(isinstance(value, str) for value in arguments.values()):
        raise BadRequest('the "args" of a request are strings')
    return request["req"], arguments


def stats(state: Snapshot) -> Any:
    """The statistics: those of the core, and a dictionary for each scope with a label."""
    document: dict[str, Any] = {"at": int(time.time())}
    document |= _struct(_TOP, state)
    for scope in _MEMBERS:
        document[scope.plural] = {labels[0]: _struct(scope, row) for labels, row in scope.rows(state)}
    return _sorted(document)


def _struct(scope: Scope, row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for metric in _plain(scope):
        value = metric.value(row)
        fields |= value if metric.texts else {metric.field: value}
    return fields


def _plain(scope: Scope) -> list[Metric]:
    """The metrics that the protocol can express: it has no histograms."""
    return [metric for metric in scope.metrics if metric.kind != "histogram"]


def meta() -> Any:
    """A description of the structs of stats()."""
    top = _meta(_TOP, "ghostbpf")
    top["fields"]["at"] = {"datum": "u64", "desc": "When this was read, in seconds since 1970.", "user": _SKIP}
    for scope in _MEMBERS:
        top["fields"][scope.plural] = {"dict": {"key": "string", "datum": {"struct": scope.name}}}
    structs = {_TOP.name: {**top, "top": "true"}}
    structs |= {scope.name: _meta(scope, f"by {scope.labels[0]}") for scope in _MEMBERS}
    return _sorted(structs)


def _meta(scope: Scope, description: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for metric in _plain(scope):
        fields |= _fields(metric)
    user = {"_om_prefix": scope.prefix, **dict(zip(["_om_label"], scope.labels, strict=False))}
    return {"name": scope.name, "desc": description, "user": user, "fields": fields}


def _fields(metric: Metric) -> dict[str, Any]:
    if metric.texts:
        return {text: {"datum": "string", "desc": metric.help, "user": _SKIP} for text in metric.texts}
    return {metric.field: {"datum": "float" if metric.is_float else "u64", "desc": metric.help}}


def _sorted(document: Any) -> Any:
    """The same with all keys in order, as scx's servers have them."""
    return {key: _sorted(document[key]) for key in sorted(document)} if isinstance(document, dict) else document
