# SPDX-License-Identifier: Apache-2.0
"""Trees of policies by commands: ``run FILE.toml``, and what ``enclave`` does to their enclaves."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from bad_policies import bad_policy
from command import ghostbpf, running
from ghostbpf.schedulers.enclave import Enclaves
from test_cli import output_of
from test_hierarchy import CO_LOCATION, swap
from workload import Workload, in_ext

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.kernel_independent(on="oldest"),
    pytest.mark.shared_core,
]

LEAF_KEYS = ["enclave", "name", "policy", "granted", "demand", "grants", "preemptions", "turns"]
LEAF_KEYS += ["self_preempts", "pokes_held", "weight", "max_cpus", "priority_cpus", "poke_threshold_ns"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tree.toml"
    file.write_text(CO_LOCATION)
    return file


def tree() -> dict[str, Any]:
    """What ``enclave ls --json`` has of the tree; empty without one."""
    rows = [json.loads(line) for line in output_of(ghostbpf("enclave", "ls", "--json")).splitlines()]
    return next((row["tree"] for row in rows if "leaves" in row.get("tree", {})), {})


def test_command_runs_in_the_leaf_that_is_named_and_keep_leaves_the_tree(file: Path, workload: Workload) -> None:
    with running("run", file, "--leaf", "batch", "--keep", "--", "sh", "-c", "echo $$; exec sleep 1000") as process:
        process.until(lambda: "\n" in process.out)
        shown = tree()
        root, (latency, batch) = shown["root"], (leaf["enclave"] for leaf in shown["leaves"])
        assert [task.tid for task in Enclaves.find(batch).tasks()] == [int(process.out)]
        process.signal(signal.SIGTERM)
        assert process.wait().status == 128 + signal.SIGTERM

    child = workload.sleeper()
    assert output_of(ghostbpf("enclave", "add", latency, child.pid)) == f"1 task joined enclave {latency}\n"
    assert in_ext(child.pid)
    shown = json.loads(output_of(ghostbpf("enclave", "show", root, "--json")))["tree"]
    assert (shown["arbiter"], shown["idle"]) == ("roci", "1-3")
    assert [list(leaf) for leaf in shown["leaves"]] == [LEAF_KEYS] * 2
    assert [(leaf["name"], leaf["policy"]) for leaf in shown["leaves"]] == [("latency", "biff"), ("batch", "rr")]
    table = output_of(ghostbpf("enclave", "ls"))
    assert f"\ntree {root}: roci on CPU 1-3; idle: 1-3\n" in table
    assert table.splitlines()[-1].split()[:4] == [f"{batch}", "batch", "rr", "none"]

    assert output_of(ghostbpf("enclave", "swap", batch, "cfs_bpf")) == f"enclave {batch}: rr -> cfs_bpf\n"
    refused = ghostbpf("enclave", "destroy", batch)
    assert (refused.status, refused.out) == (1, "")
    assert f"  try: ghostbpf enclave destroy {root}\n" in refused.err
    assert output_of(ghostbpf("enclave", "destroy", root)) == f"enclave {root} is gone\n"
    assert not in_ext(child.pid)
    assert not tree()


def test_leaf_and_file_that_do_not_exist_are_refused(file: Path) -> None:
    done = ghostbpf("run", file, "--leaf", "bulk", "--", "true")
    assert done.status == 2
    assert 'there is no leaf "bulk": choose from latency, batch' in done.err
    absent = file.with_name("absent.toml")
    done = ghostbpf("run", absent, "--", "true")
    assert done.status == 2
    assert f"{absent}: No such file or directory" in done.err


def test_stats_of_each_leaf_come_each_second_until_a_signal(file: Path) -> None:
    with running("run", file) as process:
        process.until(lambda: process.out.count("\n") >= 4)
        process.signal(signal.SIGINT, group=True)
        done = process.wait()
    assert done.status == 0
    assert re.search(r"tree \d+ is on CPU 1-3: latency is enclave \d+; batch is enclave \d+; add tasks: ", done.err)
    for line, leaf in zip(done.out.splitlines(), ["latency", "batch"] * 2, strict=False):
        assert line == f"{leaf}: granted=none demand=0 busy=0.00 grants=0/s preemptions=0/s turns=0/s"


def test_run_prints_json_and_tells_of_a_replaced_policy_of_any_leaf(
    file: Path, workload: Workload, tmp_path: Path
) -> None:
    with running("run", file, "--json", "--runnable-timeout", "1s") as process:
        process.until(lambda: process.out.count("\n") >= 2)
        _, row = (json.loads(line) for line in process.out.splitlines()[:2])
        assert list(row) == [*LEAF_KEYS[:5], "busy_cpus", *LEAF_KEYS[5:8]]
        assert (row["name"], row["policy"], row["granted"], row["demand"]) == ("batch", "rr", "", 0)
        batch = Enclaves.find(row["enclave"])
        child = workload.sleeper(batch).asleep()
        swap(batch, bad_policy(tmp_path, "drops"))
        child.wake()
        process.until(lambda: "has replaced policy drops" in process.err)
        process.signal(signal.SIGTERM)
        assert process.wait().status == 1
