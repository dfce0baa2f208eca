# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf apply`` and ``ghostbpf service``: enclaves become what a file says, and stay so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Done, Running, ghostbpf, running
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from test_cli import output_of
from workload import Workload, in_ext, until

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


def agent_of(id: int) -> int:
    """The task of enclave ``id``'s agent; 0 without an agent."""
    with contextlib.suppress(OSError):
        agent = Enclaves.find(id).agent
        return 0 if agent is None else agent.tid
    return 0


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


class Manager:
    """What systemd is to a service: the socket that it notifies."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.lines: list[str] = []

    def read(self) -> list[str]:
        """All lines so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self._socket.recv(65536).decode().splitlines()
        return self.lines

    def has(self, text: str) -> bool:
        return any(text in line for line in self.read())

    def forget(self) -> None:
        """Forget all lines so far."""
        self.read()
        self.lines.clear()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    return Manager(path)


@contextlib.contextmanager
def serving(file: Path, manager: Manager) -> Iterator[Running]:
    """A service with ``file`` that is ready."""
    manager.forget()
    with running("service", file) as service:
        service.until(lambda: manager.has("READY=1"))
        yield service


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_service_replaces_agents_that_end_or_hang_and_goes_on_where_another_ended(
    file: Path, manager: Manager, workload: Workload
) -> None:
    file.write_text('[enclave.1]\ncpus = "1-2"\npolicy = "fifo_centralized"\njoin = [{ comm = "sleep" }]\n')
    with serving(file, manager) as service:
        enclave, first = Enclaves.find(1), agent_of(1)
        with subprocess.Popen(["sleep", "1000"]) as task:
            service.until(lambda: in_ext(task.pid))
            task.kill()
        os.kill(first, signal.SIGKILL)
        service.until(lambda: agent_of(1) not in (0, first))
        second = agent_of(1)
        service.until(lambda: "its agent is gone" in service.err)

        spinners = [workload.spinner() for _ in range(3)]
        for spinner in spinners:
            enclave.add(spinner.pid)
        os.kill(second, signal.SIGSTOP)
        service.until(lambda: "hangs: it is killed" in service.err)
        service.until(lambda: agent_of(1) not in (0, second))
        manager.forget()
        service.until(lambda: manager.has("WATCHDOG=1"))

        refused = ghostbpf("service", file)
        assert refused.status == 1
        assert f"a service runs already: process {service.pid}" in refused.err
        service.signal(signal.SIGKILL)
        service.wait()
    third = agent_of(1)
    assert third
    assert enclave.is_active
    with serving(file, manager) as service:
        assert agent_of(1) == third, "a service that starts again leaves agents in charge"
        manager.forget()
        service.signal(signal.SIGTERM)
        assert service.wait().status == 0
        assert manager.has("STOPPING=1")
    assert (agent_of(1), enclave.is_active) == (third, True)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_service_keeps_what_it_has_if_a_file_or_a_profile_is_wrong(file: Path, manager: Manager) -> None:
    text = '[enclave.1]\ncpus = "1-2"\npolicy = "biff"\n'
    bad = '[[profile]]\nname = "bad"\nwhen = { running = "sleep", for = "1s" }\n[profile.enclave.1]\n'
    file.write_text(f'{text}{bad}policy = "./broken.py"\n')

    def policy() -> tuple[str, str]:
        enclave: Enclave = Enclaves.find(1)
        return enclave.policy, str(enclave.cpus)

    with serving(file, manager) as service:
        with subprocess.Popen(["sleep", "1000"]) as task:
            service.until(lambda: manager.has("not applied: "))
            assert "this policy is broken" in service.err
            assert policy() == ("biff", "1-2")

            file.write_text(f"{text}{bad}policies = 3\n")
            manager.forget()
            service.signal(signal.SIGHUP)
            service.until(lambda: manager.has("READY=1"))
            assert manager.has("RELOADING=1")
            assert f"{file}:8: profile[0].enclave.1.policies: there is no such key" in service.err
            assert policy() == ("biff", "1-2")

            file.write_text(f'{text}{bad}cpus = "1-3"\npolicy = "rr"\n')
            service.signal(signal.SIGHUP)
            service.until(lambda: policy() == ("rr", "1-3"))
            status = json.loads(ghostbpf("status", "--json").out)["service"]
            assert (status["pid"], status["profile"]) == (service.pid, "bad")
            task.kill()
        service.until(lambda: policy() == ("biff", "1-2"))
        service.signal(signal.SIGTERM)
        assert service.wait().status == 0
    until(lambda: json.loads(ghostbpf("status", "--json").out)["service"] is None)
