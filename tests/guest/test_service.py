# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf apply``: enclaves become what a file says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Done, ghostbpf
from ghostbpf.schedulers.enclave import Enclaves
from test_cli import output_of
from workload import Workload, in_ext

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.kernel_independent,
    pytest.mark.shared_core,
]

#: A policy whose agent fails as it starts.
BROKEN = """\
from ghostbpf.schedulers.userspace import AgentPolicy


class Broken(AgentPolicy):
    \"\"\"Fails.\"\"\"

    name = "broken"

    def __init__(self, *arguments: object) -> None:
        raise RuntimeError("this policy is broken")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path for the file; enclaves 1 and 2 are destroyed at the end."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    (tmp_path / "broken.py").write_text(BROKEN)
    yield tmp_path / "enclaves.toml"
    with Enclaves.change() as enclaves:
        for enclave in list(enclaves or ()):
            if enclave.id in (1, 2):
                enclave.destroy()


def rows(done: Done) -> list[dict[str, object]]:
    return [json.loads(line) for line in output_of(done).splitlines()]


def test_apply_makes_what_the_file_says_and_then_nothing(file: Path, workload: Workload) -> None:
    file.write_text('[enclave.1]\ncpus = "1-2"\npolicy = "biff"\noptions = { slice = "20ms" }\n')
    wanted = {"enclave": 1, "what": "enclave", "before": None, "after": "biff slice=20ms on CPU 1-2"}
    assert rows(ghostbpf("apply", "--dry-run", "--json", file)) == [wanted]
    enclaves = Enclaves.open()
    assert enclaves is not None
    assert 1 not in enclaves.ids(), "--dry-run changes nothing"
    assert rows(ghostbpf("apply", "--json", file)) == [wanted]
    enclave = Enclaves.find(1)
    assert (enclave.policy, str(enclave.cpus)) == ("biff", "1-2")
    child = workload.sleeper()
    enclave.add(child.pid)
    assert output_of(ghostbpf("apply", file)) == f"the enclaves are as in {file}\n"

    # Enclave 2 gets a CPU that enclave 1 gives away, and the task stays.
    file.write_text(
        '[enclave.1]\ncpus = "2-3"\npolicy = "rr"\nrunnable-timeout = "2s"\ncgroup-limits = false\n'
        '[enclave.2]\ncpus = "1"\npolicy = "biff"\n'
    )
    assert {(row["enclave"], row["what"]) for row in rows(ghostbpf("apply", "--json", file))} == {
        *((1, what) for what in ("policy", "cpus", "runnable-timeout", "cgroup-limits")),
        (2, "enclave"),
    }
    assert (enclave.policy, str(enclave.cpus), enclave.runnable_timeout_ns) == ("rr", "2-3", 2_000_000_000)
    assert enclave.ignores_cgroup_limits
    assert [task.tid for task in enclave.tasks()] == [child.pid]
    assert str(Enclaves.find(2).cpus) == "1"
    assert rows(ghostbpf("apply", "--json", file)) == []

    # Another command has replaced the policy: its options are unknown.
    output_of(ghostbpf("enclave", "swap", 1, "rr"))
    (row,) = rows(ghostbpf("apply", "--json", "--dry-run", file))
    assert row == {"enclave": 1, "what": "policy", "before": "rr (options unknown)", "after": "rr"}
    file.write_text('[enclave.2]\ncpus = "1"\npolicy = "biff"\n')
    (row,) = rows(ghostbpf("apply", "--json", "--remove", 1, file))
    assert (row["enclave"], row["after"]) == (1, None)
    assert not enclave.is_active
    assert not in_ext(child.pid)


def test_apply_undoes_what_came_before_a_policy_that_fails(file: Path) -> None:
    before = '[enclave.1]\ncpus = "1"\npolicy = "rr"\noptions = { slice = "2ms" }\n'
    file.write_text(before + '[enclave.2]\ncpus = "2"\npolicy = "biff"\n')
    output_of(ghostbpf("apply", file))
    after = file.read_text().replace('"rr"\noptions = { slice = "2ms" }', '"biff"').replace('cpus = "1"', 'cpus = "3"')
    file.write_text(after.replace('"2"\npolicy = "biff"', '"2"\npolicy = "./broken.py"'))
    failed = ghostbpf("apply", file)
    assert failed.status == 1
    assert "this policy is broken" in failed.err
    assert [(Enclaves.find(id).policy, str(Enclaves.find(id).cpus)) for id in (1, 2)] == [("rr", "1"), ("biff", "2")]
    file.write_text(before + '[enclave.2]\ncpus = "2"\npolicy = "biff"\n')
    assert rows(ghostbpf("apply", "--json", file)) == [], "also the options are those of before"
