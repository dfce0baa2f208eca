# SPDX-License-Identifier: Apache-2.0
"""A wheel has everything, also the kernel-side C; an editable install uses the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from ghostbpf.schedulers.agents import extension
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[2]
_VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment in which the wheel is installed."""
    where = tmp_path_factory.mktemp("wheel")
    # A copy, since a build leaves files in the tree.
    tree = where / "tree"
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, text=True)
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((CHECKOUT / name).read_bytes())
    run = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(where), str(tree)]
    subprocess.run(run, check=True, capture_output=True)
    (wheel,) = where.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", where / "venv"], check=True)
    python = where / "venv" / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # The venv sees the wheel's dependencies, linked from this environment, and none of its other packages.
    _link_dependencies(where / "dependencies")
    Path(site.strip(), "dependencies.pth").write_text(f"{where / 'dependencies'}\n")
    # pip checks the dependencies: it fails if one is missing, as it has no index to fetch it from.
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", wheel], check=True)
    return python


def _link_dependencies(directory: Path) -> None:
    """Link the files of all direct and indirect dependencies of ghostbpf into `directory`."""
    directory.mkdir()
    pending, seen = ["ghostbpf"], {"ghostbpf"}
    while pending:
        for requirement in map(Requirement, metadata.requires(pending.pop()) or ()):
            if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            pending.append(requirement.name)
            seen.add(requirement.name)
            distribution = metadata.distribution(requirement.name)
            for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
                (directory / top).symlink_to(Path(str(distribution.locate_file(top))))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _python(python: Path, code: str, cwd: Path) -> str:
    return subprocess.check_output([python, "-c", code], cwd=cwd, env=_environment(), text=True).strip()


def _ghostbpf(python: Path, *arguments: str, cwd: Path) -> str:
    return subprocess.check_output([python.with_name("ghostbpf"), *arguments], cwd=cwd, env=_environment(), text=True)


def test_wheel_has_its_own_modules_and_c(wheel_python: Path, tmp_path: Path) -> None:
    found = _python(wheel_python, "from ghostbpf.loaders.source import BPF_DIR; print(BPF_DIR)", tmp_path)
    assert not Path(found).is_relative_to(CHECKOUT)
    brought = {path.relative_to(found) for path in Path(found).rglob("*.[ch]")}
    assert brought == {path.relative_to(CHECKOUT / "bpf") for path in (CHECKOUT / "bpf").rglob("*.[ch]")}


def test_wheel_installs_the_command(wheel_python: Path, tmp_path: Path) -> None:
    assert '"policy": "biff"' in _ghostbpf(wheel_python, "policies", "--json", cwd=tmp_path)


def test_wheel_has_the_version_of_pyproject(wheel_python: Path, tmp_path: Path) -> None:
    assert _ghostbpf(wheel_python, "--version", cwd=tmp_path) == f"ghostbpf {_VERSION}\n"


def test_checkout_that_is_not_installed_has_the_version_of_pyproject(wheel_python: Path, tmp_path: Path) -> None:
    (tmp_path / "ghostbpf").symlink_to(CHECKOUT)
    # -S leaves site-packages out: like a guest, the interpreter finds no metadata of ghostbpf.
    code = "from ghostbpf.tools.version import version; print(version())"
    environment = _environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([wheel_python, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{_VERSION}\n", done.stderr


def _agents(python: Path, cwd: Path) -> tuple[str, str]:
    """What doctor says of agents, and what an agent's policy writes to stderr when it is loaded."""
    run = [python.with_name("ghostbpf"), "doctor", "--json"]
    done = subprocess.run(run, cwd=cwd, env=_environment(), text=True, capture_output=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return next(row["found"] for row in rows if row["what"] == "agents"), done.stderr


def test_native_half_that_is_missing_broken_or_stale_is_not_used(wheel_python: Path, tmp_path: Path) -> None:
    where = "from importlib.util import find_spec; print(find_spec('ghostbpf.schedulers.agents._native').origin)"
    built = Path(_python(wheel_python, where, tmp_path))
    assert built.name == "_native.abi3.so"
    assert _agents(wheel_python, tmp_path) == (f"with their native half, version {extension.VERSION}", "")
    good = built.read_bytes()
    try:
        built.write_text("not a library")
        found, warning = _agents(wheel_python, tmp_path)
        assert "in Python alone, and slower (does not load: " in found
        assert warning.count("warning:") == 1
        assert "try: build it again: make setup" in warning
        stale = tmp_path / "native"
        shutil.copytree(CHECKOUT / "schedulers" / "agents" / "native", stale)
        header = stale / "native.h"
        header.write_text(header.read_text().replace(f"NATIVE_VERSION {extension.VERSION}", "NATIVE_VERSION 999"))
        include = sysconfig.get_path("include")
        sources = stale.glob("*.c")
        subprocess.run(["cc", "-O0", "-w", "-shared", "-fPIC", f"-I{include}", *sources, "-o", built], check=True)
        found, warning = _agents(wheel_python, tmp_path)
        assert found == f"in Python alone, and slower (stale: version 999, not {extension.VERSION})"
        assert warning.count("warning:") == 1
        built.unlink()
        assert _agents(wheel_python, tmp_path) == ("in Python alone, and slower (not built)", "")
    finally:
        built.write_bytes(good)


def test_wheel_writes_a_new_policy(wheel_python: Path, tmp_path: Path) -> None:
    _ghostbpf(wheel_python, "new", "mine", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"mine.py", "pyproject.toml"}


@pytest.mark.usefixtures("root", "bcc")
def test_wheel_traces(wheel_python: Path, tmp_path: Path) -> None:
    lines = _ghostbpf(wheel_python, "trace", "runqlat", "--json", "1", "1", cwd=tmp_path).splitlines()
    histogram, end = map(json.loads, lines)
    assert histogram["tool"] == "runqlat"
    assert 0 < histogram["count"] == end["events"]


def test_editable_install_is_the_checkout(tmp_path: Path) -> None:
    path = _python(Path(sys.executable), "import ghostbpf.tools.cli as m; print(m.__file__)", tmp_path)
    assert Path(path).resolve() == CHECKOUT / "tools" / "cli.py"
