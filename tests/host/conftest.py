# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the host tier, which runs on the host's kernel and attaches no scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.core
import pytest
from ghostbpf.loaders import btf, libbcc
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import KernelUnsupported
from ghostbpf.loaders.object import Object

# With --import-mode=importlib, a test's own directory is not on the path.
sys.path.insert(0, str(Path(__file__).parent))
from tracing import Task


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis try the same examples in each run, or those of ``--seed``, without a time limit."""
    seed = config.getoption("--seed")
    hypothesis.settings.register_profile(
        "repeatable",
        derandomize=seed is None,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("repeatable")
    hypothesis.core.global_force_seed = seed


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a cache of compiled programs of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Set handlers of SIGINT and SIGHUP, which children would otherwise inherit as ignored (a shell's &, nohup)."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def root() -> None:
    """Skip unless the tests run as root."""
    if os.geteuid() != 0:
        pytest.skip("loading BPF needs root")


@pytest.fixture(scope="session")
def bcc(root: None) -> None:
    """Skip if C cannot be compiled to BPF."""
    try:
        libbcc.library()
    except KernelUnsupported as error:
        pytest.skip(f"{error} ({error.hint})")
    if not btf.VMLINUX.exists():
        pytest.skip("this kernel has no BTF")


@pytest.fixture
def bpf_source(bcc: None, tmp_path: Path) -> Callable[..., Path]:
    """``bpf_source(text, name="test.bpf.c")`` writes C to a file in the test's directory."""

    def write(text: str, name: str = "test.bpf.c") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    return write


@pytest.fixture(scope="session")
def build(bcc: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Object]:
    """Compile C text, for objects that several tests share."""

    def compile_text(text: str) -> Object:
        path = tmp_path_factory.mktemp("source") / "test.bpf.c"
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return compile(path)

    return compile_text


@pytest.fixture(scope="session")
def bpftool() -> Callable[..., Any]:
    """``bpftool("map", "show")`` runs ``bpftool -j`` and parses its output."""
    # Debian installs it in a directory that only root's PATH has.
    tool = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("no bpftool on this machine (apt install bpftool)")

    def run(*args: str | Path) -> Any:
        done = subprocess.run([tool, "-j", *args], check=True, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    return run


@pytest.fixture
def mount(root: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``mount(kind, options="")`` mounts a file system for the test; returns its path."""
    with contextlib.ExitStack() as undo:

        def mount_one(kind: str, options: str = "") -> Path:
            point = tmp_path / f"mnt-{kind}"
            point.mkdir()
            command = ["mount", "-t", kind, *(["-o", options] if options else []), f"test-{kind}", str(point)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"cannot mount a {kind}: {done.stderr.strip()}")
            undo.callback(subprocess.run, ["umount", "-l", str(point)], check=True)
            return point

        yield mount_one


@pytest.fixture
def bpffs(mount: Callable[..., Path]) -> Path:
    """A bpffs for the test."""
    return mount("bpf")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """``stack.enter_context(handle)`` closes the handle at the end of the test."""
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], bool]:
    """Wait up to ten seconds for asynchronous work of the kernel, mostly an RCU grace period."""

    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    return wait


@pytest.fixture
def task() -> Iterator[Callable[..., Task]]:
    """``task(work, cpu=None, name=None)`` forks a Task, which ends with the test."""
    made: list[Task] = []

    def fork(*arguments: Any, **options: Any) -> Task:
        made.append(Task(*arguments, **options))
        return made[-1]

    yield fork
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def cpus() -> list[int]:
    """The CPUs that tests may use; skip if there is only one."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        pytest.skip("this needs 2 CPUs")
    return found


@pytest.fixture(scope="session")
def open_fds() -> Callable[[], dict[int, str]]:
    """Return the open descriptors of this process, and the target of each."""

    def read() -> dict[int, str]:
        found = {}
        for entry in os.listdir("/proc/self/fd"):
            # The descriptor of listdir itself is closed again.
            with contextlib.suppress(FileNotFoundError):
                found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        return found

    return read
