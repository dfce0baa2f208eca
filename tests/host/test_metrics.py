# SPDX-License-Identifier: Apache-2.0
"""The metrics: declarations, documentation and dashboard agree, and what is exported is valid and complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers import snapshot
from ghostbpf.schedulers.errors import StalePins
from ghostbpf.schedulers.snapshot import Snapshot
from ghostbpf.tools.metrics.declarations import PER_CPU, SCOPES
from ghostbpf.tools.metrics.exposition import HttpServer, Reader, registry, write_textfile
from prometheus_client import generate_latest, parser
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))
from metrics_state import AGENT, STATE

ROOT = Path(__file__).parents[2]
NAMES = {scope.prefix + metric.field for scope in SCOPES for metric in scope.metrics}
HISTOGRAMS = {s.prefix + metric.field for s in SCOPES for metric in s.metrics if metric.kind == "histogram"}
#: The samples of a histogram have names of their own.
SAMPLES = NAMES - HISTOGRAMS | {name + end for name in HISTOGRAMS for end in ("_bucket", "_count", "_sum")}
GHOSTBPF = [sys.executable, "-m", "ghostbpf.tools.cli"]


def families(state: Snapshot = STATE) -> dict[str, Family]:
    text = openmetrics(registry(lambda: state, per_cpu=True)).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(state: Snapshot = STATE) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in families(state).values():
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_names_follow_the_conventions() -> None:
    metrics = [(scope, metric) for scope in SCOPES for metric in scope.metrics]
    assert len(NAMES) == len(metrics)
    for scope, metric in metrics:
        name = scope.prefix + metric.field
        assert re.fullmatch(r"ghostbpf(_[a-z]+)+", name)
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert (metric.kind == "info") == name.endswith("_info") == bool(metric.texts), name
        assert not re.search(r"_(ns|us|usec|ms|nanoseconds|milliseconds)(_|$)", name), "base units"
        assert metric.help.endswith("."), name


def test_page_lists_each_metric_with_its_type_its_labels_and_its_meaning() -> None:
    rows = re.findall(
        r"^\| `(ghostbpf_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    assert rows == [
        (
            scope.prefix + metric.field,
            metric.kind,
            ", ".join((*scope.labels, *metric.texts)) or "none",
            metric.help + (" `--per-cpu`." if scope in PER_CPU else ""),
        )
        for scope in SCOPES
        for metric in scope.metrics
    ]


def test_exposition_has_every_metric_and_both_formats_parse() -> None:
    assert samples().keys() == SAMPLES
    plain = generate_latest(registry(lambda: STATE, per_cpu=True)).decode()
    assert {s.name for family in parser.text_string_to_metric_families(plain) for s in family.samples} == SAMPLES


def test_values_are_in_base_units_with_their_labels() -> None:
    found = samples()
    assert found["ghostbpf_enclave_runtime_seconds_total"] == [({"enclave": "1"}, 1.0)]
    assert found["ghostbpf_enclave_switches_total"] == [({"enclave": "1"}, 33)]
    assert found["ghostbpf_enclave_cpu_runtime_seconds_total"] == [
        ({"enclave": "1", "cpu": "2"}, 0.6),
        ({"enclave": "1", "cpu": "3"}, 0.4),
    ]
    assert found["ghostbpf_agent_busy_seconds_total"] == [({"enclave": "1"}, AGENT.busy_ns / 1e9)]
    assert found["ghostbpf_enclave_info"] == [({"enclave": "1", "policy": "sol", "cpus": "2-3", "tree": "0"}, 1)]
    assert found["ghostbpf_leaf_info"] == [({"enclave": "5", "leaf": "batch", "tree": "4"}, 1)]
    assert found["ghostbpf_cgroup_limit_cpus"] == [({"cgroup": '/a "b"\\c\ufffd'}, 0.5)]
    assert found["ghostbpf_cgroup_throttled_seconds_total"][0][1] == 2.5
    assert found["ghostbpf_kernel_events_total"] == [({"event": "SCX_EV_DISPATCH_KEEP_LAST"}, 3)]
    assert found["ghostbpf_kernel_bypass_seconds_total"] == [({}, 2)]
    assert found["ghostbpf_core_state"][0] == ({"state": "attached"}, 1)
    assert sum(value for _, value in found["ghostbpf_core_state"]) == 1


def test_histogram_counts_what_is_below_each_end() -> None:
    found = samples()
    buckets = {labels["le"]: value for labels, value in found["ghostbpf_enclave_wakeup_wait_seconds_bucket"]}
    assert len(buckets) == 32
    assert list(buckets.items())[:2] == [("1.024e-06", 1), ("2.048e-06", 3)]
    assert (buckets["+Inf"], found["ghostbpf_enclave_wakeup_wait_seconds_sum"][0][1]) == (6, 0.5)
    assert found["ghostbpf_enclave_waiting_tasks_count"] == [({"enclave": "1"}, 4)]


def test_time_of_an_ejection_is_that_of_the_clock_and_the_same_in_each_scrape() -> None:
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ((labels, at),) = samples()["ghostbpf_last_ejection_timestamp_seconds"]
    assert labels == {"reason": "runnable task stall"}
    assert at == pytest.approx(booted + 1, abs=1.5)
    assert samples()["ghostbpf_last_ejection_timestamp_seconds"][0][1] == at


def test_metrics_of_cpus_are_left_out_by_default() -> None:
    text = openmetrics(registry(lambda: STATE)).decode()
    assert "ghostbpf_enclave_runtime_seconds_total" in text
    assert "ghostbpf_enclave_cpu_" not in text


def test_without_a_core_the_gauge_is_0_and_nothing_else_is_made_up() -> None:
    found = samples(snapshot.take())
    assert found["ghostbpf_up"] == [({}, 0)]
    assert "ghostbpf_enclave_tasks" not in found


def test_error_that_lasts_is_printed_once_and_the_state_is_unreadable(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [StalePins("/pins", "old"), StalePins("/pins", "old"), None, StalePins("/pins", "old")]

    def take() -> Snapshot:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return STATE

    reader = Reader(take)
    assert [reader.read().state for _ in range(4)] == ["unreadable", "unreadable", "attached", "unreadable"]
    assert capsys.readouterr().err.count("error: /pins holds pins") == 2


@contextlib.contextmanager
def serving(read: Any = lambda: STATE) -> Iterator[HttpServer]:
    with HttpServer("127.0.0.1", 0, registry(read)) as server:
        server.start()
        yield server


def get(url: str, accept: str = "*/*") -> tuple[str, str]:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=20) as response:
        return response.headers["Content-Type"], response.read().decode()


#: What Prometheus 2.42 and 3.x send.
PROMETHEUS = [
    "application/openmetrics-text; version=1.0.0,application/openmetrics-text; version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
]


@pytest.mark.parametrize("accept", PROMETHEUS)
def test_prometheus_gets_openmetrics_with_samples(accept: str) -> None:
    with serving() as server:
        kind, text = get(server.url, accept)
        assert kind.startswith("application/openmetrics-text")
        assert 'ghostbpf_enclave_switches_total{enclave="1"} 33.0\n' in text
        assert text.endswith("# EOF\n")
        kind, text = get(server.url)
        assert kind.startswith("text/plain")
        assert 'ghostbpf_enclave_switches_total{enclave="1"} 33.0\n' in text
        assert get(server.url + "?name[]=ghostbpf_up")[1].count("# TYPE") == 1


def test_scrapes_are_served_while_other_clients_say_nothing() -> None:
    with serving() as server, contextlib.ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(socket.create_connection(server.server_address[:2]))  # type: ignore[arg-type]
        texts: list[str] = []
        threads = [threading.Thread(target=lambda: texts.append(get(server.url)[1])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [texts[0]] * 8
        assert "ghostbpf_up 1.0" in texts[0]


def test_port_in_use_is_named_with_the_remedy() -> None:
    with serving() as server:
        port = server.server_address[1]
        with pytest.raises(GhostError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use") as error:
            HttpServer("127.0.0.1", port, registry(lambda: STATE))
        assert f"sport = :{port}" in str(error.value.hint)


def test_textfile_is_replaced_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "ghostbpf.prom"
    write_textfile(file, b"old")
    with open(file) as reader:
        write_textfile(file, b"new")
        assert reader.read() == "old"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o644)
    assert os.listdir(tmp_path) == ["ghostbpf.prom"]


@pytest.mark.usefixtures("root")
def test_full_disk_is_reported_and_the_old_file_stays(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        file = tmp_path / "ghostbpf.prom"
        write_textfile(file, b"old")
        with pytest.raises(GhostError, match=f"{os.strerror(errno.ENOSPC)}; the file from before stays") as error:
            write_textfile(file, b"x" * (1 << 17))
        assert str(tmp_path) in str(error.value.hint)
        assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["ghostbpf.prom"])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_all_three_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    file, stats = tmp_path / "ghostbpf.prom", tmp_path / "stats"
    options = ["--listen", "127.0.0.1:0", "--textfile", str(file), "--interval", "100ms", "--scx-stats", str(stats)]
    with subprocess.Popen([*GHOSTBPF, "metrics", *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        assert "ghostbpf_up 0.0" in get(lines[0].split()[1])[1]
        first = file.stat().st_ino
        while file.stat().st_ino == first:  # until it is replaced
            time.sleep(0.01)
        assert "ghostbpf_up 0.0" in file.read_text()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(stats))
            client.sendall(b'{"req":"stats"}\n')
            assert client.recv(20).startswith(b'{"errno":0,"args":')
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert not stats.exists()


@pytest.mark.usefixtures("root")
def test_once_prints_openmetrics_or_json() -> None:
    text = subprocess.check_output([*GHOSTBPF, "metrics", "--once"], text=True)
    assert "ghostbpf_up" in {family.name for family in text_string_to_metric_families(text)}
    rows = [
        json.loads(line) for line in subprocess.check_output([*GHOSTBPF, "metrics", "--once", "--json"]).splitlines()
    ]
    assert {"metric": "ghostbpf_up", "type": "gauge", "labels": {}, "value": 0} in rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "9901"], '"9901" is not HOST:PORT'),
        (["--listen", "localhost:99999"], "is not HOST:PORT"),
        (["--interval", "2h"], 'bad duration "2h"'),
        (["--once", "--scx-stats"], "--once prints the metrics"),
        (["--json"], "--json goes with --once"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    done = subprocess.run([*GHOSTBPF, "metrics", *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def dashboard() -> Any:
    return json.loads((ROOT / "packaging/grafana/ghostbpf.json").read_text())


def test_dashboard_asks_for_declared_metrics_and_labels() -> None:
    labels = {scope.prefix + m.field: {*scope.labels, *m.texts, "instance"} for scope in SCOPES for m in scope.metrics}
    document = dashboard()
    queries = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    queries += [variable["definition"] for variable in document["templating"]["list"] if "definition" in variable]
    asked: set[str] = set()
    for query in queries:
        for name, selector in re.findall(r"(ghostbpf_\w+)(?:\{([^}]*)\})?", query):
            assert name in SAMPLES, name
            name = re.sub("_(bucket|count|sum)$", "", name)
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name], query
            asked.add(name)
        counters = re.findall(r"(ghostbpf_\w+_(?:total|bucket|count|sum))", query)
        assert query.count("rate(") == len(counters), f"a counter without rate(): {query}"
    assert len(asked) > 20


def test_dashboard_has_what_grafana_needs() -> None:
    document = dashboard()
    assert document["title"]
    assert document["uid"]
    assert document["schemaVersion"] >= 36
    assert set(document["time"]) == {"from", "to"}
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        targets = panel.get("targets", [])
        assert bool(targets) == (panel["type"] != "row")
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all(target["datasource"]["uid"] == "${datasource}" for target in targets)
        used = {name for target in targets for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= {*variables, "__rate_interval"}
