# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf metrics`` over real HTTP and a real socket: what it exports is what the core counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agents import MakeAgentProcess
from command import Running, ghostbpf, nobody, running, without_capabilities
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers import core, hierarchy, limits, snapshot, trees
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES
from kernel_log import KernelLog
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from workload import MakeEnclave, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

#: Metrics of an enclave's counters, and the counter of each.
COUNTERS = {
    "runtime_seconds_total": "runtime_ns",
    "switches_total": "switches",
    "idle_wakeups_total": "idle",
    "queued_total": "queued",
    "preemptions_total": "preempted",
    "affinity_misses_total": "affinity_misses",
    "lent_seconds_total": "lent_ns",
    "borrowed_seconds_total": "borrowed_ns",
    "borrowings_total": "borrowings",
    "reclaims_total": "reclaims",
}


def scrape(url: str) -> Samples:
    """The samples of one scrape, as OpenMetrics, by name and labels."""
    request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        return samples(response.read().decode())


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: object) -> float:
    return found[name, frozenset((name, str(text)) for name, text in labels.items())]


def labels_of(found: Samples, name: str) -> list[dict[str, str]]:
    return [dict(labels) for sample, labels in found if sample == name]


@contextlib.contextmanager
def exporter(*options: object) -> Iterator[tuple[Running, str]]:
    """A running exporter and its URL; it must end with status 0 on SIGTERM, without an error."""
    with running("metrics", "--listen", "127.0.0.1:0", *options) as process:
        process.until(lambda: "/metrics\n" in process.err)
        yield process, re.findall(r"http://\S+", process.err)[0]
        process.signal(signal.SIGTERM)
        done = process.wait()
    assert (done.status, done.out) == (0, "")
    assert "error" not in done.err


def test_scrape_has_the_counters_of_the_kernel_and_grows_with_work(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1-2", "rr", slice="2ms")
    with exporter("--per-cpu") as (_, url):
        first = scrape(url)
        children = [workload.spinner(e) for _ in range(3)]
        for child in children:
            child.progress(3)
        before, found, after = e.counters(), scrape(url), e.counters()
    assert value(found, "ghostbpf_up") == 1
    assert value(found, "ghostbpf_core_state", state="attached") == 1
    assert value(found, "ghostbpf_enclave_info", enclave=e.id, policy="rr", cpus="1-2", tree=0) == 1
    assert value(found, "ghostbpf_enclave_tasks", enclave=e.id) == 3
    assert value(found, "ghostbpf_enclave_cpus", enclave=e.id) == 2
    for name, counter in COUNTERS.items():
        unit = 1e9 if counter.endswith("_ns") else 1
        low, high = (getattr(counters, counter) / unit for counters in (before, after))
        assert low <= value(found, f"ghostbpf_enclave_{name}", enclave=e.id) <= high, name
    for name in ("runtime_seconds_total", "switches_total"):
        grown = f"ghostbpf_enclave_{name}"
        assert value(found, grown, enclave=e.id) > value(first, grown, enclave=e.id)
        cpus = [value(found, f"ghostbpf_enclave_cpu_{name}", enclave=e.id, cpu=cpu) for cpu in (1, 2)]
        assert sum(cpus) == pytest.approx(value(found, grown, enclave=e.id))
    counted = sched_ext.events()
    assert "SCX_EV_DISPATCH_KEEP_LAST" in counted
    for labels in labels_of(found, "ghostbpf_kernel_events_total"):
        assert value(found, "ghostbpf_kernel_events_total", **labels) <= counted[labels["event"]]


@pytest.mark.soak
def test_agents_and_limits_are_in_metrics_and_in_scx_statistics(
    workload: Workload, agent_process: MakeAgentProcess, cgroup: Path, tmp_path: Path
) -> None:
    e, _ = agent_process("1-2", "fifo_centralized", fastpath="off")
    (cgroup / "below/cpu.max").write_text("10000 100000")
    path = tmp_path / "scx" / "root" / "stats"
    with exporter("--scx-stats", path) as (_, url):
        child = workload.spinner(e)
        child.progress()
        (cgroup / "below/cgroup.procs").write_text(str(child.pid))
        if limits.are_applied():
            until(lambda: any(usage.nr_throttled > 1 for usage in snapshot.take().cgroups), "it is throttled")
        before, found, after = snapshot.take(), scrape(url), snapshot.take()
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rw") as lines:
            client.connect(str(path))
            print('{"req":"stats","args":{"target":"top"}}', file=lines, flush=True)
            response = json.loads(lines.readline())
    assert response["errno"] == 0
    stats = response["args"]["resp"]
    (old,), (new,) = ([one.agent for one in state.enclaves if one.id == e.id] for state in (before, after))
    assert old is not None
    assert new is not None
    assert value(found, "ghostbpf_agent_up", enclave=e.id) == stats["agents"][str(e.id)]["up"] == 1
    assert 0 < old.committed <= value(found, "ghostbpf_agent_decisions_total", enclave=e.id) <= new.committed
    assert old.committed <= stats["agents"][str(e.id)]["decisions_total"]
    assert stats["enclaves"][str(e.id)]["policy"] == "fifo_centralized"
    assert stats["enclaves"][str(e.id)]["runtime_seconds_total"] > 0
    if limits.are_applied():
        name = "/ghostbpf-test/below"
        assert value(found, "ghostbpf_cgroup_limit_cpus", cgroup=name) == stats["cgroups"][name]["limit_cpus"] == 0.1
        assert value(found, "ghostbpf_cgroup_throttled_seconds_total", cgroup=name) > 0
        assert stats["cgroups"][name]["throttled_periods_total"] > 1
    assert not path.exists()


@pytest.mark.soak
def test_scrapes_at_the_same_time_are_complete_while_enclaves_come_and_go(enclave: MakeEnclave) -> None:
    kept = enclave("1")
    with exporter() as (process, url), ThreadPoolExecutor() as pool:
        scrape(url)
        descriptors = Path(f"/proc/{process.pid}/fd")
        opened = len(os.listdir(descriptors))
        for policy in ("biff", "rr", "biff"):
            with Enclaves.create() as enclaves:
                passing = enclaves.new(CpuSet([2]), POLICIES[policy])
            scrapes = [pool.submit(scrape, url) for _ in range(3)]
            destroy(passing)
            for one in scrapes:
                found = one.result()
                infos = {labels["enclave"]: labels for labels in labels_of(found, "ghostbpf_enclave_info")}
                assert str(kept.id) in infos
                assert infos.get(str(passing.id), {"policy": policy})["policy"] == policy
                assert {labels["enclave"] for labels in labels_of(found, "ghostbpf_enclave_tasks")} == infos.keys()
        assert str(passing.id) not in {labels["enclave"] for labels in labels_of(scrape(url), "ghostbpf_enclave_info")}
        assert len(os.listdir(descriptors)) <= opened + 1  # a connection may be about to close


def destroy(e: Enclave) -> None:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(e.id).destroy()


@pytest.mark.own_core
def test_core_that_comes_is_ejected_and_comes_again(enclave: MakeEnclave, kernel_log: KernelLog) -> None:
    kernel_log.expect("ghostbpf")
    core.LAST_EXIT.unlink(missing_ok=True)
    with exporter() as (_, url):
        found = scrape(url)
        assert value(found, "ghostbpf_up") == 0
        assert value(found, "ghostbpf_core_state", state="detached") == 1
        assert labels_of(found, "ghostbpf_last_ejection_timestamp_seconds") == []
        enclave("1")
        assert value(scrape(url), "ghostbpf_up") == 1
        Path("/proc/sysrq-trigger").write_text("S")
        until(lambda: sched_ext.status().state == "disabled")
        found = scrape(url)
        assert value(found, "ghostbpf_up") == 0
        assert value(found, "ghostbpf_core_state", state="ejected") == 1
        (reason,) = labels_of(found, "ghostbpf_last_ejection_timestamp_seconds")
        assert "sysrq" in reason["reason"].lower()
        assert labels_of(found, "ghostbpf_enclave_info") == []
        with Enclaves.create() as enclaves:
            again = enclaves.new(CpuSet([1]), POLICIES["biff"])
        found = scrape(url)
        assert value(found, "ghostbpf_up") == 1
        assert labels_of(found, "ghostbpf_last_ejection_timestamp_seconds") == [reason]
        destroy(again)
        assert value(scrape(url), "ghostbpf_core_state", state="detached") == 1


@pytest.mark.soak
def test_root_needs_no_capability_and_other_users_may_not_read(workload: Workload, tmp_path: Path) -> None:
    config = tmp_path / "tree.toml"
    config.write_text('arbiter = "roci"\ncpus = "1-2"\n[[child]]\nname = "only"\npolicy = "biff"\n')
    with trees.temporary(hierarchy.read(str(config), POLICIES)) as root:
        (leaf,) = trees.leaves(root)
        spinner = workload.spinner(Enclaves.find(leaf.enclave))
        spinner.progress()
        done = ghostbpf("metrics", "--once", first=without_capabilities)
        refused = ghostbpf("metrics", "--once", first=nobody)
        spinner.kill()
    assert (done.status, done.err) == (0, "")
    found = samples(done.out)
    assert value(found, "ghostbpf_leaf_info", enclave=leaf.enclave, leaf="only", tree=root.id) == 1
    assert value(found, "ghostbpf_leaf_demand_tasks", enclave=leaf.enclave) == 1
    assert value(found, "ghostbpf_leaf_grants_total", enclave=leaf.enclave) >= 1
    assert (refused.status, refused.out) == (1, "")
    assert "CAP_DAC_OVERRIDE" in refused.err
