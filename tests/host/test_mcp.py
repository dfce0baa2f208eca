# SPDX-License-Identifier: Apache-2.0
"""ghostbpf mcp, by the SDK's own client over stdio."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from anyio.from_thread import start_blocking_portal
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.mcp.arguments import BadArgument, Limits, command_line
from ghostbpf.tools.mcp.catalog import Tool, is_list, json_type, tools
from ghostbpf.tools.mcp.child import _Kept
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root")
no_sched_ext = pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="this kernel has sched_ext")

#: Arguments of tools that only read, of which the value is text: none runs code, or names a file.
JUDGED_TEXTS = {
    *("top filter", "bench cpus"),
    *(f"trace_* {name}" for name in ("comm", "cgroup", "duration", "interval")),
    *("record duration", "record last"),
    # In the server's directory.
    *("trace_* plot", "record output", "explain file", "compare a", "compare b", "bench baseline", "bench plot"),
    "bench output",
    # Names alone.
    *("bench workload", "bench policy", "bench with"),
}


class Server:
    """A server, and the SDK's client of it, driven from a thread that has no event loop."""

    def __init__(self, portal: Any, client: Client) -> None:
        self._portal, self._client = portal, client

    def tools(self) -> dict[str, Any]:
        return {tool.name: tool for tool in self._portal.call(self._client.list_tools).tools}

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        done: CallToolResult = self._portal.call(self._client.call_tool, tool, arguments)
        return done

    def call_until(self, stop: Callable[[], bool], tool: str, **arguments: Any) -> list[float]:
        """Call ``tool``, and cancel the call when ``stop`` returns True after a progress; returns the progresses."""
        seen: list[float] = []

        async def call() -> None:
            with anyio.CancelScope() as scope:

                async def progress(seconds: float, total: float | None, message: str | None) -> None:
                    seen.append(seconds)
                    if stop():
                        scope.cancel()

                await self._client.call_tool(tool, arguments, progress_callback=progress)

        self._portal.call(call)
        return seen


@contextmanager
def serving(*options: object) -> Iterator[Server]:
    words = ["-m", "ghostbpf.tools.cli", "mcp", *map(str, options)]
    parameters = StdioServerParameters(command=sys.executable, args=words)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(parameters)) as client,
    ):
        yield Server(portal, client)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with serving("--files", directory) as started:
        yield started


def text(result: CallToolResult) -> str:
    return "\n".join(part.text for part in result.content)  # type: ignore[union-attr]


def rows(result: CallToolResult) -> list[Any]:
    """The JSON lines of a result, the first part of its content."""
    assert not result.is_error, text(result)
    return [json.loads(line) for line in result.content[0].text.splitlines()]  # type: ignore[union-attr]


def running(word: str) -> list[int]:
    """The processes with ``word`` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if word in words:
            found.append(int(path.parent.name))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tools_only_read_by_default_and_have_the_schemas_of_the_commands(server: Server) -> None:
    listed = server.tools()
    assert list(listed) == list(tools(allow_changes=False))
    assert not {"run_biff", "enclave_destroy", "enclave_add", "enclave_swap"} & {*listed}
    assert all(tool.annotations.read_only_hint for tool in listed.values())
    schema = listed["explain"].input_schema
    assert schema["required"] == ["file", "task"]
    assert schema["properties"]["longest"] == {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "Show the N longest waits, in the order of time.",
    }


def test_result_is_what_the_command_prints(server: Server) -> None:
    assert [row["policy"] for row in rows(server.call("policies"))] == list(POLICIES)
    done = server.call("doctor")  # its exit status 1 is a finding
    assert "sched_ext" in [row["what"] for row in rows(done)]


@no_sched_ext
def test_error_has_the_commands_message_with_remedy(server: Server) -> None:
    done = server.call("bench", workload=["pipe"])
    assert done.is_error
    assert "error: " in text(done)
    assert "\n  try: ghostbpf vm -- ghostbpf bench" in text(done)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("enclave_destroy", {"id": 1}, "--allow-changes"),
        ("explain", {"file": "../trace", "task": 1}, "outside of the server's directory"),
        ("explain", {"file": "outside", "task": 1}, "outside of the server's directory"),
        ("explain", {"file": "/etc/shadow", "task": 1}, "--files DIR"),
        ("record", {"output": "there", "duration": "1"}, "this server writes only new files"),
        ("record", {"output": "x", "duration": "1", "cmd": ["true"]}, "runs no command of the caller"),
        ("trace_runqlat", {}, "duration"),
        ("trace_runqlat", {"duration": "1", "pidd": 1}, 'did you mean "pid"?'),
        ("trace_runqlat", {"duration": "1", "pid": "one"}, "not of type integer"),
        ("trace_runqlat", {"duration": "no"}, "not a number of seconds"),
        ("trace_runqlat", {"duration": "1", "interval": "-c"}, 'begins with "-"'),
        ("bench", {"workload": ["x=touch pwned"]}, "which runs a command"),
        ("bench", {"policy": ["./pwned.py"]}, "which runs a command"),
        ("bench", {"with": ["x=touch pwned"]}, "which runs a command"),
        ("no_such_tool", {}, "there is no tool"),
    ],
)
def test_bad_call_is_refused_with_remedy(
    server: Server, directory: Path, tmp_path: Path, tool: str, arguments: dict[str, Any], message: str
) -> None:
    (directory / "there").touch()
    (directory / "outside").unlink(missing_ok=True)
    (directory / "outside").symlink_to(tmp_path / "file")
    done = server.call(tool, **arguments)
    assert done.is_error
    assert message in text(done)
    assert (directory / "there").stat().st_size == 0


@needs_root
def test_recording_is_made_and_explained(server: Server, directory: Path) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    spinners = [subprocess.Popen(["taskset", "-c", cpu, "sh", "-c", "while :; do :; done"]) for _ in range(2)]
    try:
        done = server.call("record", output="trace", duration="1")
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert not done.is_error, text(done)
    assert (directory / "trace").stat().st_size
    *waits, summary = rows(server.call("explain", file="trace", task=spinners[0].pid))
    assert waits
    assert summary["type"] == "summary"
    refused = server.call("explain", file="trace", task=2**22 + 1)
    assert refused.is_error
    assert f"task {2**22 + 1} is not in " in text(refused)
    assert "\n  try: " in text(refused)


@needs_root
@pytest.mark.soak
def test_run_that_takes_too_long_is_ended_and_shows_what_it_has(server: Server) -> None:
    server.call("trace_runqlat", duration="0.1")  # compiles it, if that has not been done
    with serving("--timeout", "10") as short:
        done = short.call("trace_runqlat", duration="3600")
    assert rows(done)
    assert "it ran for 10 s, and was ended" in text(done)


@needs_root
def test_cancelled_call_reports_progress_and_ends_its_command(server: Server) -> None:
    mine = "--duration=3601"
    seen = server.call_until(lambda: bool(running(mine)), "trace_runqlat", duration="3601")
    assert seen
    assert seen == sorted(seen)
    wait_until(lambda: not running(mine))


@needs_root
@pytest.mark.parametrize(
    "end",
    [
        signal.SIGTERM,
        *(pytest.param(end, marks=pytest.mark.soak) for end in (signal.SIGINT, signal.SIGKILL, "the client goes")),
    ],
)
def test_server_that_ends_takes_its_commands_along(end: signal.Signals | str, tmp_path: Path) -> None:
    mine = "--duration=3602"
    server = subprocess.Popen(
        [sys.executable, "-m", "ghostbpf.tools.cli", "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert server.stdin is not None
    for message in _handshake("trace_runqlat", {"duration": "3602"}):
        print(json.dumps(message), file=server.stdin, flush=True)
    wait_until(lambda: bool(running(mine)))
    if isinstance(end, signal.Signals):
        server.send_signal(end)
    else:
        server.stdin.close()
    is_killed = end == signal.SIGKILL
    assert server.wait(timeout=30) == (-signal.SIGKILL if is_killed else 0)
    wait_until(lambda: not running(mine))
    assert is_killed or not [*tmp_path.iterdir()]


def _handshake(tool: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    call = {"name": tool, "arguments": arguments}
    return [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]


def test_without_a_client_or_the_sdk_the_error_has_a_remedy() -> None:
    words = [sys.executable, "-m", "ghostbpf.tools.cli", "mcp"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdin is no pipe of an MCP client\n  try: ")
    program = (
        "import sys; sys.modules['mcp'] = None; from ghostbpf.tools import cli; sys.argv = ['', 'mcp']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: mcp needs the Python package mcp, version 2\n  try: pip install")


def test_list_of_tools_is_within_80_columns() -> None:
    words = [sys.executable, "-m", "ghostbpf.tools.cli", "mcp", "--list", "--allow-changes"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "enclave_destroy" in done.stdout


@pytest.mark.parametrize("allow_changes", [False, True])
def test_each_option_of_a_command_is_an_argument_of_its_tool(allow_changes: bool) -> None:
    for tool in tools(allow_changes=allow_changes).values():
        left_out = {*tool.command.params} - {*tool.parameters.values()}
        names = {name for parameter in left_out for name in parameter.opts}
        assert names <= {"--json", "--once", "--follow", "cmd"}, tool.name


def test_texts_of_tools_that_read_have_been_judged() -> None:
    found = set()
    for tool in tools(allow_changes=False).values():
        for name, parameter in tool.parameters.items():
            if json_type(parameter) == "string" and not isinstance(parameter.type, click.Choice):
                found.add(f"{'trace_*' if tool.name.startswith('trace_') else tool.name} {name}")
    assert found == JUDGED_TEXTS


_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just("-x"), st.just("--"))


@settings(max_examples=30)
@given(st.data())
def test_arguments_make_no_option_but_their_own(data: st.DataObject) -> None:
    found: dict[str, Tool] = tools_that_read()
    tool = found[data.draw(st.sampled_from(sorted(found)))]
    names = st.sampled_from(sorted({*tool.parameters, "cmd"}))
    arguments = data.draw(st.dictionaries(names, st.one_of(_values, st.lists(_values, max_size=2))))
    try:
        words = command_line(tool, arguments, Limits(Path("/nonexistent"), False))
    except BadArgument:
        return
    given_names = [f"--{name.replace('_', '-')}" for name in arguments]
    for word in words[len(tool.path) + len(tool.always) :]:
        assert not word.startswith("-") or word.partition("=")[0] in given_names
    lists = [name for name, value in arguments.items() if isinstance(value, list)]
    assert all(is_list(tool.parameters[name]) for name in lists)


_READING: dict[str, Tool] = {}


def tools_that_read() -> dict[str, Tool]:
    _READING.update(_READING or tools(allow_changes=False))
    return _READING


@given(st.lists(st.text("ab\n", max_size=9).map(str.encode)), st.integers(1, 12))
def test_output_is_kept_up_to_a_size_in_whole_lines(pieces: list[bytes], most: int) -> None:
    whole = b"".join(pieces)
    first, last = _Kept(most), _Kept(most, last=True)
    for piece in pieces:
        first.add(piece)
        last.add(piece)
    for kept in (first, last):
        assert len(kept.kept) <= most
        assert len(kept.kept) + kept.left_out == len(whole)
    assert whole.startswith(first.kept)
    assert whole.endswith(last.kept)
    if first.left_out and b"\n" in whole[:most]:
        assert first.kept.endswith(b"\n")
