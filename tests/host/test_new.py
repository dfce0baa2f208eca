# SPDX-License-Identifier: Apache-2.0
"""A new policy on a kernel without sched_ext: written, found, listed, refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from ghostbpf.schedulers.errors import NoPolicyInFile
from ghostbpf.schedulers.registry import from_file
from ghostbpf.tools.new import BadName, check
from test_command import ghostbpf

CLASS = """
from ghostbpf.schedulers.userspace import AgentPolicy, Option, flag

class {0}(AgentPolicy):
    name = "{0}"
    options = (flag("{0}", "{0}", "of {0}"),)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package that ``ghostbpf new my_policy`` writes."""
    done = ghostbpf("new", "my_policy", "--dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "my_policy"


def test_package_is_a_short_policy_with_an_entry_point(package: Path) -> None:
    assert {file.name for file in package.iterdir()} == {"my_policy.py", "pyproject.toml"}
    code = (package / "my_policy.py").read_text()
    assert len(code.splitlines()) <= 60
    assert not any("${" in file.read_text() for file in package.iterdir())
    half = from_file(str(package / "my_policy.py"))
    assert (half.name, half.parse().values["slice_ns"]) == ("my_policy", 10_000_000)
    assert half.parse({"slice": "inf"}).values["slice_ns"] == 0


def test_package_is_well_typed_and_formatted(package: Path) -> None:
    checkout, file = Path(__file__).parents[2], package / "my_policy.py"
    (package / "ghostbpf").symlink_to(checkout)
    config = str(checkout / "pyproject.toml")
    for line in (
        ["mypy", "--config-file", config],
        ["ruff", "check", "--config", config],
        ["ruff", "format", "--check", "--config", config],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *line, file], capture_output=True, text=True, check=False, cwd=package
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_next_steps_name_existing_commands(tmp_path: Path) -> None:
    output = ghostbpf("new", "my_policy", "--dir", str(tmp_path)).stdout
    here = tmp_path / "my_policy"
    commands = [line.removeprefix("  sudo ").split() for line in output.splitlines() if line.startswith("  ")]
    assert [command[1:3] for command in commands] == [
        ["run", f"{here}/my_policy.py"],
        ["install", "-e"],
        ["run", "my_policy"],
    ]
    assert all(Path(command[0]).is_file() for command in commands)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of a new virtual environment with the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # addsitedir() also finds editable installs, such as ghostbpf.
    Path(site.strip(), "all.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def test_installed_policy_is_listed_and_can_be_run(package: Path, environment: Path, tmp_path: Path) -> None:
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([environment, "-m", "pip", "install", *offline, "-e", package], check=True)
    command = [environment, "-m", "ghostbpf.tools.cli"]
    listed = subprocess.check_output([*command, "policies", "--json"], cwd=tmp_path, text=True)
    (row,) = [row for row in map(json.loads, listed.splitlines()) if row["policy"] == "my_policy"]
    assert (row["in"], row["options"]) == ("Python", "--slice 10ms")
    assert row["what it does"] == "First come, first served, each for a slice at a time"
    told = subprocess.check_output([*command, "run", "my_policy", "--help"], cwd=tmp_path, text=True)
    assert "--slice" in told
    again = subprocess.run([*command, "new", "my_policy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, "there is such a policy" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "no name of a Python module") for name in ("", "my-policy", "1st", "a b", "_x", "x_", "../x", "ö")),
        *((name, "there is such a policy") for name in ("biff", "fifo_per_cpu")),
        *((name, "there is such a Python module") for name in ("json", "click")),
        ("class", "no name of a Python module"),
        ("x" * 32, "longer than 31 characters"),
    ],
)
def test_bad_name_is_refused_with_a_hint(name: str, why: str) -> None:
    with pytest.raises(BadName, match=why) as error:
        check(name)
    assert (error.value.exit_status, error.value.name) == (2, name)
    assert error.value.hint


def test_longest_name_is_accepted() -> None:
    check("x" * 31)


def test_bad_name_on_the_command_line_writes_nothing(tmp_path: Path) -> None:
    done = ghostbpf("new", "my-policy", "--dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error == 'error: a policy cannot be called "my-policy": it is no name of a Python module'
    assert hint == "  try: letters, digits and _, like my_policy"
    assert not list(tmp_path.iterdir())


def test_existing_file_is_not_overwritten(package: Path) -> None:
    (package / "my_policy.py").write_text("mine")
    done = ghostbpf("new", "my_policy", "--dir", str(package.parent))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {package} is there already\n  try: ")
    assert (package / "my_policy.py").read_text() == "mine"


def test_directory_that_is_not_there_is_a_wrong_command_line(tmp_path: Path) -> None:
    done = ghostbpf("new", "my_policy", "--dir", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_class_in_a_file_is_a_policy_with_its_options(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(CLASS.format("One") + CLASS.format("Two"))
    done = ghostbpf("run", f"{file}:Two", "--help")
    assert done.returncode == 0
    assert "--Two" in done.stdout
    assert "--One" not in done.stdout
    assert from_file(f"{file}:One").name == "One"


@pytest.mark.parametrize(
    ("code", "which", "says", "hint"),
    [
        (None, "", "there is no such file", None),
        ("1 +", "", "SyntaxError", None),
        ("\n\nnonsense", "", r"NameError: .*\(line 3\)", None),
        ("from ghostbpf.schedulers.userspace import FifoPerCpu", "", "0 policies", "ghostbpf new"),
        (CLASS.format("One"), ":Two", "defines no Two", "x.py:One"),
        (CLASS.format("One") + CLASS.format("Two"), "", "2 policies", "x.py:One or .*x.py:Two"),
    ],
)
def test_file_without_the_policy_says_why(
    code: str | None, which: str, says: str, hint: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "x.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(NoPolicyInFile, match=says) as error:
        from_file(f"{file}{which}")
    assert error.value.exit_status == 2
    assert hint is None or re.search(hint, error.value.hint or "")
