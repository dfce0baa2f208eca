# SPDX-License-Identifier: Apache-2.0
"""The Debian package builds, lintian accepts it, and its files work after installation in a Debian root."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DEB = [sys.executable, str(CHECKOUT / "packaging" / "deb.py")]
# Copied before a fixture sets XDG_CACHE_HOME: making the Debian root takes minutes.
_ENVIRONMENT = dict(os.environ)

_VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the built package. The first of them builds it, and makes the root if none is cached."""
    return pytest.mark.soak(pytest.mark.timeout(1200)(test))


def test_debian_changelog_has_the_version_of_pyproject() -> None:
    first = (CHECKOUT / "packaging" / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"ghostbpf ({_VERSION}) ")


@pytest.fixture(scope="module")
def built(root: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The package, and the output of its build."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap on this machine (apt install mmdebstrap)")
    directory = tmp_path_factory.mktemp("deb")
    done = subprocess.run([*DEB, "build", str(directory)], capture_output=True, text=True, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (package,) = directory.glob("*.deb")
    return package, done.stdout + done.stderr


@pytest.fixture(scope="module")
def package(built: tuple[Path, str]) -> Path:
    """The package."""
    return built[0]


def _installed(package: Path, script: str) -> str:
    """Run a bash script in a Debian root where the package is installed, and return its stdout."""
    command = [*DEB, "try", str(package), "bash", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@slow
def test_lintian_has_no_error_and_no_warning(built: tuple[Path, str]) -> None:
    assert re.findall(r"^[EW]: .*", built[1], re.MULTILINE) == []


@slow
def test_package_has_the_version_of_pyproject(package: Path) -> None:
    assert package.name == f"ghostbpf_{_VERSION}_all.deb"
    assert _installed(package, "ghostbpf --version") == f"ghostbpf {_VERSION}\n"


@slow
def test_package_has_all_bpf_sources(package: Path) -> None:
    listed = _installed(package, "dpkg --listfiles ghostbpf")
    installed = {Path(line) for line in listed.splitlines() if re.search(r"/ghostbpf/bpf/.*\.[ch]$", line)}
    sources = {path.relative_to(CHECKOUT / "bpf") for path in (CHECKOUT / "bpf").rglob("*.[ch]")}
    assert {path.relative_to("/usr/lib/python3/dist-packages/ghostbpf/bpf") for path in installed} == sources


@slow
def test_man_and_whatis_find_the_pages(package: Path) -> None:
    assert "ghostbpf-run - " in _installed(package, "man ghostbpf-run")
    assert "ghostbpf-trace-runqlat (1)" in _installed(package, "mandb -q; whatis ghostbpf-trace-runqlat")


@slow
def test_mandoc_has_no_warning(package: Path) -> None:
    # mandoc's exit status is its worst finding. It reads only the first of several compressed files correctly.
    names = _installed(
        package, "cd /root; cp /usr/share/man/man1/ghostbpf* .; gunzip *.gz; mandoc -T lint -W warning *.1; ls"
    )
    assert len(names.split()) > 40


@slow
def test_shells_complete_after_installation(package: Path) -> None:
    bash = """
        . /usr/share/bash-completion/completions/ghostbpf
        COMP_WORDS=(ghostbpf enc) COMP_CWORD=1
        _ghostbpf_completion ghostbpf enc ghostbpf
        echo "${COMPREPLY[@]}"
    """
    assert _installed(package, bash) == "enclave\n"
    # fish and zsh find the script in their own search paths.
    assert _installed(package, """fish -c 'complete -C "ghostbpf enc"'""").split()[0] == "enclave"
    zsh = "zsh -fc 'autoload -U compinit; compinit -D; echo $_comps[ghostbpf]'"
    assert _installed(package, zsh) == "_ghostbpf\n"
