# SPDX-License-Identifier: Apache-2.0
"""scx's statistics protocol over real sockets, by the requests and responses of its crate scx_stats."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.tools.metrics import scx_stats
from ghostbpf.tools.metrics.declarations import SCOPES
from ghostbpf.tools.metrics.stats_socket import LONGEST_LINE, MOST_CLIENTS, StatsSocket
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from metrics_state import STATE

#: How long a test waits for an answer, in seconds.
PATIENCE = 20.0

Answer = Callable[[bytes], bytes]
answer: Answer = functools.partial(scx_stats.answer, read=lambda: STATE)


@contextlib.contextmanager
def serving(path: Path, answer: Answer = answer) -> Iterator[StatsSocket]:
    with StatsSocket(path, answer) as server:
        server.start()
        yield server


@contextlib.contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(PATIENCE)
        made.connect(str(path))
        yield made


def ask(made: socket.socket, line: bytes) -> bytes:
    made.sendall(line)
    return line_from(made)


def line_from(made: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        data = made.recv(1 << 16)
        if not data:
            break
        received += data
    return received


def response(line: bytes) -> Any:
    document = json.loads(answer(line))
    assert list(document) == ["errno", "args"]
    assert list(document["args"]) == ["resp"]
    return document["args"]["resp"] if document["errno"] == 0 else document["errno"]


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        # As the crate's client writes requests: StatsRequest has the fields req and args, in this order.
        (b'{"req":"stop","args":{}}\n', b'{"errno":22,"args":{"resp":"unknown command \\"stop\\""}}\n'),
        (
            b'{"req":"stats","args":{"target":"cpu"}}\n',
            b'{"errno":22,"args":{"resp":"unknown stat target \\"cpu\\""}}\n',
        ),
        (b'{"req":7}\n', b'{"errno":22,"args":{"resp":"a request has the string \\"req\\""}}\n'),
        (b'{"args":{}}\n', b'{"errno":22,"args":{"resp":"a request has the string \\"req\\""}}\n'),
        (
            b'{"req":"stats","args":{"target":1}}\n',
            b'{"errno":22,"args":{"resp":"the \\"args\\" of a request are strings"}}\n',
        ),
    ],
)
def test_error_is_einval_with_a_reason(request_line: bytes, expected: bytes) -> None:
    assert answer(request_line) == expected


def test_statistics_are_a_line_of_compact_json_with_sorted_keys() -> None:
    line = answer(b'{"req":"stats","args":{"target":"top"}}\n')
    assert line.startswith(b'{"errno":0,"args":{"resp":{"agents":{"1":{"busy_seconds_total":1.5,"decisions_total":7,')
    assert line.endswith(b'"version":"%s"}}}\n' % STATE_VERSION)
    assert line.count(b"\n") == 1
    leaf = b'"demand_tasks":2,"granted_cpus":1,"grants_total":3,"held_pokes_total":7,"leaf":"batch",'
    assert b'"leaves":{"5":{%s' % leaf in line


STATE_VERSION = scx_stats.stats(STATE)["version"].encode()


def test_target_is_optional_and_other_members_of_a_request_are_ignored() -> None:
    for line in (b'{"req":"stats"}', b'{"req":"stats","args":{}}', b' {"req": "stats", "args": {"x": "y"}, "z": 1} '):
        assert response(line)["up"] == 1


def test_description_has_each_statistic_with_its_type() -> None:
    structs, stats = response(b'{"req":"stats_meta"}'), response(b'{"req":"stats"}')
    (top,) = (name for name, struct in structs.items() if "top" in struct)
    kinds = {"u64": int, "float": float, "string": str}

    def check(name: str, document: dict[str, Any]) -> None:
        assert structs[name]["name"] == name
        assert document.keys() == structs[name]["fields"].keys()
        for field, value in document.items():
            kind = structs[name]["fields"][field]
            if "dict" in kind:
                assert kind["dict"]["key"] == "string"
                assert value, f"the snapshot has no {field}"
                for one in value.values():
                    check(kind["dict"]["datum"]["struct"], one)
            else:
                assert type(value) is kinds[kind["datum"]], field

    check(top, stats)


def test_names_that_scx_makes_of_statistics_are_those_of_openmetrics() -> None:
    """As scxstats_to_openmetrics.py makes them: prefix and field, and a label for the key of a dictionary."""
    structs = response(b'{"req":"stats_meta"}')
    made = {
        (struct["user"]["_om_prefix"] + field, struct["user"].get("_om_label"))
        for struct in structs.values()
        for field, kind in struct["fields"].items()
        if "datum" in kind and "_om_skip" not in kind.get("user", {})
    }
    # The protocol has no histograms.
    kinds = ("counter", "gauge")
    numbers = ((scope, metric) for scope in SCOPES for metric in scope.metrics if metric.kind in kinds)
    declared = {(scope.prefix + m.field, *(scope.labels or [None])) for scope, m in numbers if len(scope.labels) < 2}
    assert made == declared


@given(st.binary() | st.text().map(str.encode) | st.integers(1, 30_000).map(lambda n: b"[" * n))
def test_any_line_has_an_answer(line: bytes) -> None:
    assert answer(line).endswith(b"\n")


def test_requests_of_one_client_are_answered_in_order(tmp_path: Path) -> None:
    with serving(tmp_path / "root" / "stats"), client(tmp_path / "root" / "stats") as made:
        made.sendall(b'{"req":"a"}\n{"req":"stats"}\n{"req":"b"}\n')
        with made.makefile("rb") as lines:
            errnos = [json.loads(lines.readline())["errno"] for _ in range(3)]
            made.sendall(b'{"req":"c"}')  # without a line break, as the crate's server takes it at the end
            made.shutdown(socket.SHUT_WR)
            assert b"unknown command" in lines.readline()
            assert lines.read() == b""
    assert errnos == [22, 0, 22]


def test_half_a_line_waits_for_the_other_half(tmp_path: Path) -> None:
    with serving(tmp_path / "stats"), client(tmp_path / "stats") as half, client(tmp_path / "stats") as other:
        half.sendall(b'{"req":')
        assert json.loads(ask(other, b'{"req":"stats"}\n'))["errno"] == 0
        assert json.loads(ask(half, b'"stats"}\n'))["errno"] == 0


def test_garbage_gets_an_error_and_an_endless_line_the_end_of_the_connection(tmp_path: Path) -> None:
    with serving(tmp_path / "stats"), client(tmp_path / "stats") as made, client(tmp_path / "stats") as other:
        assert json.loads(ask(made, b"\x00\xff\n"))["errno"] == 22
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                made.sendall(b"x" * LONGEST_LINE)
            pytest.fail("the server read 100 times the longest line")
        assert json.loads(ask(other, b'{"req":"stats"}\n'))["errno"] == 0


def test_client_that_never_reads_gets_few_answers_and_disturbs_no_other(tmp_path: Path) -> None:
    answered: list[bytes] = []

    def large(line: bytes) -> bytes:
        answered.append(line)
        return b"x" * (1 << 16) + b"\n"

    with serving(tmp_path / "stats", large), client(tmp_path / "stats") as deaf, client(tmp_path / "stats") as other:
        deaf.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += deaf.send(b"deaf\n" * 1000) // len(b"deaf\n")
        for _ in range(200):
            assert len(ask(other, b"other\n")) == (1 << 16) + 1
    assert sent > 1000
    assert 0 < answered.count(b"deaf\n") < 20  # what the socket's buffer takes


def test_of_too_many_clients_the_silent_one_is_disconnected(tmp_path: Path) -> None:
    with serving(tmp_path / "stats"), contextlib.ExitStack() as opened:
        silent = opened.enter_context(client(tmp_path / "stats"))
        ask(silent, b"x\n")
        for _ in range(2 * MOST_CLIENTS):
            made = opened.enter_context(client(tmp_path / "stats"))
            assert json.loads(ask(made, b'{"req":"stats"}\n'))["errno"] == 0
        assert silent.recv(1) == b""


def test_socket_of_a_dead_process_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with serving(path):
        with pytest.raises(GhostError, match="another process does") as error:
            StatsSocket(path, answer)
        assert str(path) in str(error.value.hint)
        with client(path) as made:
            assert json.loads(ask(made, b'{"req":"stats"}\n'))["errno"] == 0
    assert not path.exists()


def test_of_servers_that_start_at_once_exactly_one_listens(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made: list[StatsSocket] = []
    refused: list[GhostError] = []

    def start() -> None:
        try:
            made.append(StatsSocket(path, answer))
        except GhostError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (server,) = made
    assert len(refused) == 7
    server.start()
    with client(path) as one:
        assert json.loads(ask(one, b'{"req":"stats"}\n'))["errno"] == 0
    server.close()


def test_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    path.write_text("mine")
    with pytest.raises(GhostError, match="is not a socket"):
        StatsSocket(path, answer)
    assert path.read_text() == "mine"


def test_path_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(GhostError, match="cannot listen at") as error:
        StatsSocket(tmp_path / ("x" * 120), answer)
    assert "--scx-stats PATH" in str(error.value.hint)


def test_socket_that_another_process_has_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    with serving(path) as server:
        assert not server.is_replaced
        os.rename(path, tmp_path / "old")
        path.write_text("theirs")
        assert server.is_replaced
    assert path.read_text() == "theirs"


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that any user may open."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    place = Path(f"/run/ghostbpf-test-{os.getpid()}")
    place.mkdir()
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_other_users_reach_the_socket_where_its_mode_and_its_directory_let_them(open_place: Path) -> None:
    path = open_place / "stats"

    def errno_of_nobody() -> int:
        body = "import socket, sys; sys.exit(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))"
        command = ["/usr/bin/python3", "-I", "-c", body, path]
        return subprocess.run(command, user=65534, group=65534, extra_groups=[], check=False).returncode

    before = os.umask(0o022)
    try:
        with serving(path):
            assert errno_of_nobody() == errno.EACCES
            path.chmod(0o757)
            assert errno_of_nobody() == 0
            open_place.chmod(0o700)
            assert errno_of_nobody() == errno.EACCES
    finally:
        os.umask(before)


def test_user_who_locks_the_directory_does_not_stop_the_server(open_place: Path) -> None:
    holder = subprocess.Popen(
        ["flock", "-n", open_place, "sh", "-c", "echo held; read wait"],
        user=65534,
        group=65534,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with serving(open_place / "stats"), client(open_place / "stats") as one:
            assert ask(one, b"{}\n")
        holder.stdin.close()
