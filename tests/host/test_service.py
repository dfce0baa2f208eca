# SPDX-License-Identifier: Apache-2.0
"""The parts of ``ghostbpf service`` that need no kernel with sched_ext, and its unit."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ghostbpf.schedulers.processes import ProcTask, Rule
from ghostbpf.tools.service import state
from ghostbpf.tools.service.config import Conditions, Profile
from ghostbpf.tools.service.notify import Notifier
from ghostbpf.tools.service.profiles import CpuLoad, ProfileChooser, holds, process_names
from ghostbpf.tools.service.state import ServiceRuns, ServiceState, StateFile

UNIT = Path(__file__).parents[2] / "packaging" / "ghostbpf.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (apt: systemd)")

BUSY = Profile("busy", Conditions(load_above=0.8, for_s=10), {})
PLAYS = Profile("plays", Conditions(running=("mpv", "ffm*"), for_s=2), {})


def test_profile_holds_after_its_time_and_as_long_after_its_end() -> None:
    chooser = ProfileChooser([BUSY])
    assert chooser.choose(0, 0.1, ()) is None
    loads = {100: 0.9, 105: 0.7, 106: 0.9, 115: 0.9, 116: 0.9, 117: 0.1, 126: 0.9, 127: 0.1, 136: 0.1, 137: 0.1}
    chosen = {at: chooser.choose(at, load, ()) for at, load in loads.items()}
    assert [at for at, name in chosen.items() if name == "busy"] == [116, 117, 126, 127, 136]


def test_first_profile_in_the_file_wins_and_holds_at_once_at_the_start() -> None:
    chooser = ProfileChooser([PLAYS, BUSY])
    assert chooser.choose(0, 0.9, {"ffmpeg"}) == "plays"
    assert chooser.choose(1, 0.9, {"sh"}) == "plays"
    assert chooser.choose(3, 0.9, {"sh"}) == "busy"


def test_all_conditions_must_hold() -> None:
    when = Conditions(running=("make",), load_above=0.2, load_below=0.8)
    assert holds(when, 0.5, {"make"})
    assert not holds(when, 0.5, {"makes"})
    assert not holds(when, 0.2, {"make"})
    assert not holds(when, 0.8, {"make"})


def test_load_is_the_share_of_ticks_in_use_of_the_last_reads(tmp_path: Path) -> None:
    stat = tmp_path / "stat"

    def write(user: int, idle: int, steal: int = 0) -> None:
        stat.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n")

    write(0, 0)
    load = CpuLoad(stat)
    assert load.read() == 0
    write(30, 60, 10)
    assert load.read() == pytest.approx(0.3)
    for second in range(1, 6):
        write(30 + 100 * second, 60, 10)
        load.read()
    assert load.read() == 1, "what was before has no weight any more"


def test_names_of_processes_include_this_one() -> None:
    assert ProcTask(os.getpid()).comm in process_names()


def test_rule_leaves_out_what_another_selects() -> None:
    own = ProcTask(os.getpid())
    rule = Rule(comms=(own.comm,))
    assert rule.fits(own)
    assert not rule.without((Rule(uids=frozenset({own.uid})),)).fits(own)
    assert rule.without((Rule(uids=frozenset({own.uid + 1})),)).fits(own)


def test_message_is_sent_after_one_that_found_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    notifier = Notifier()
    assert not notifier.send("READY=1")
    notifier.status("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        assert notifier.send("READY=1", "MAINPID=1")
        assert manager.recv(100) == b"READY=1\nMAINPID=1"
        for text in ("lost", "lost", "two\nlines"):
            notifier.status(text)
        assert [manager.recv(100) for _ in range(2)] == [b"STATUS=lost", b"STATUS=two lines"]
        notifier.reloading()
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(100))


def test_message_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ghostbpf-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        assert Notifier().send("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_watchdog_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    assert Notifier().watchdog_s is None
    assert not Notifier().send("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    assert Notifier().watchdog_s == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_s is None


def test_second_service_is_refused_and_told_which_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    assert state.read() is None
    script = """
from ghostbpf.tools.service.state import ServiceState, StateFile
import os
with StateFile.hold() as state:
    state.write(ServiceState(os.getpid(), "/etc/x.toml", "busy", "a long text that the next does not have"))
    state.write(ServiceState(os.getpid(), "/etc/x.toml", "busy", "fine"))
    print("ready", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert state.read() == ServiceState(process.pid, "/etc/x.toml", "busy", "fine")
        with pytest.raises(ServiceRuns, match=rf"process {process.pid}, with /etc/x\.toml"), StateFile.hold():
            pass
        process.kill()
    assert state.read() is None, "a service that was killed does not run"
    with StateFile.hold():
        pass


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the command of this checkout."""
    path = tmp_path / "ghostbpf.service"
    command = Path(sys.executable).parent / "ghostbpf"
    path.write_text(UNIT.read_text().replace("/usr/bin/ghostbpf", str(command)))
    return path


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_unit_is_hardened(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_unit_runs_the_command_with_a_file_below_etc() -> None:
    text = UNIT.read_text()
    assert re.search(r"^ExecStart=/usr/bin/ghostbpf service (/etc/\S+\.toml)$", text, re.MULTILINE)
    assert "KillMode=process" in text, "agents outlive the service"
