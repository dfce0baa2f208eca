# SPDX-License-Identifier: Apache-2.0
"""Lines of JSON: the output of every tool conforms to tools/trace/schema.json, and the schema rejects other lines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ghostbpf.tools.trace.command import TOOLS
from ghostbpf.tools.trace.dsqlat import _NUMBERED
from tracing import SCHEMA, objects, run_trace

#: A command that blocks, runs, is preempted and moves.
BUSY = "taskset -pc {there} $$ >&2; for i in 1 2 3; do sleep 0.002; taskset -pc {here} $$ >&2; done"

#: Options that change the lines of a tool.
VARIANTS: list[tuple[str, ...]] = [
    *((name,) for name in TOOLS if name != "dsqlat"),
    *(("runqlat", option) for option in ("-P", "-L", "--per-cpu", "-m")),
    *(("runqlen", *options) for options in (("--per-cpu",), ("-O",), ("-O", "--per-cpu"))),
    ("runqslower", "--min", "1"),
    ("cpudist", "-O", "-I", "-L"),
    ("offcputime", "--folded"),
    ("wakers", "-P"),
    ("migrations", "-M"),
    ("schedrun", "-g"),
]

#: Readers that store numbers as doubles (jq, JavaScript, sqlite) round from this value on.
EXACT = 1 << 53

no_sched_ext = pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="this kernel has sched_ext")


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON document."""
    match value:
        case dict():
            yield from numbers(list(value.values()))
        case list():
            for one in value:
                yield from numbers(one)
        case int() | float():
            yield value


@pytest.fixture(scope="session")
def busy(cpus: list[int]) -> tuple[str, ...]:
    return "sh", "-c", BUSY.format(here=cpus[0], there=cpus[1])


@pytest.mark.parametrize("arguments", VARIANTS, ids=" ".join)
def test_lines_are_as_the_schema_says(bcc: None, busy: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    done = run_trace(*arguments, "--json", "--", *busy)
    assert done.returncode == 0, done.stderr
    *reports, end = objects(done.stdout)
    assert {line["tool"] for line in (*reports, end)} == {arguments[0]}
    assert end["type"] == "end"
    assert all(line["type"] in ("histogram", "row", "stack") for line in reports)
    times = [datetime.fromisoformat(line["time"]) for line in (*reports, end)]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)
    assert max(numbers([*reports, end])) < EXACT
    # On the host, no task is in an enclave or in SCHED_EXT.
    assert bool(reports) is (arguments not in (("schedghostidle",), ("schedrun", "-g"))) or arguments == ("runqslower",)


@no_sched_ext
def test_dsqlat_is_refused_where_there_is_no_sched_ext(root: None) -> None:
    done = run_trace("dsqlat", "--json", "-d", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no sched_ext" in done.stderr
    assert "Traceback" not in done.stderr


def test_schema_is_one() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validators.validator_for(schema).check_schema(schema)
    assert set(schema["properties"]["tool"]["enum"]) == set(TOOLS)


def integers(schema: Any, name: str = "") -> Iterator[str]:
    """The names of the integer properties of a schema."""
    match schema:
        case list():
            for one in schema:
                yield from integers(one, name)
        case dict():
            if "integer" in str(schema.get("type", "")):
                yield name
            for key, one in schema.items():
                yield from integers(one, key)


def test_no_id_or_address_of_64_bits_is_a_number() -> None:
    names = set(integers(json.loads(SCHEMA.read_text())))
    assert {"tid", "pid", "cpu", "count"} <= names
    assert not [name for name in names if {"dsq", "gtid", "cgroup", "address", "cookie"} & set(name.split("_"))]


@pytest.mark.parametrize(
    "dsq", ["none", "LOCAL_ON 3", *(f"{name} 3" for name in _NUMBERED.values()), "0x0", f"{1 << 63 | 7:#x}"]
)
def test_dsq_is_a_name_or_a_hex_string(dsq: str) -> None:
    line = {**HISTOGRAM, "tool": "dsqlat", "by": {"dsq": dsq, "enclave": 0}}
    assert objects(json.dumps(line)) == [line]
    line["by"] = {"dsq": 1 << 63 | 7, "enclave": 0}
    with pytest.raises(jsonschema.ValidationError):
        objects(json.dumps(line))


END: dict[str, Any] = {
    "tool": "runqlat", "time": "2026-01-01T12:00:00.000+00:00", "type": "end", "seconds": 1.0, "events": 3, "drops": 0,
    "unended": 0, "unannounced": 0
}  # fmt: skip
HISTOGRAM: dict[str, Any] = {
    **{key: END[key] for key in ("tool", "time", "seconds")},
    "type": "histogram", "name": "wait", "by": {}, "unit": "usecs", "count": 3,
    "p50": 1.0, "p90": 1.5, "p99": 1.9, "p99.9": 1.9, "max": 1.9, "avg": 1.1,
    "buckets": [{"from": 0, "to": 1, "count": 3}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "spoil"),
    [
        (END, lambda line: line.pop("drops")),
        (END, lambda line: line.update(drops=-1)),
        (END, lambda line: line.update(tool="nonsense")),
        (HISTOGRAM, lambda line: line.pop("buckets")),
        (HISTOGRAM, lambda line: line.pop("p99.9")),
        (HISTOGRAM, lambda line: line.update(unit="hours")),
        (HISTOGRAM, lambda line: line.update(name="nonsense")),
        (HISTOGRAM, lambda line: line["buckets"][0].pop("to")),
    ],
)
def test_schema_refuses_what_is_wrong(line: dict[str, Any], spoil: Callable[[dict[str, Any]], object]) -> None:
    assert objects(json.dumps(line)) == [line]
    wrong = copy.deepcopy(line)
    spoil(wrong)
    with pytest.raises(jsonschema.ValidationError):
        objects(json.dumps(wrong))
