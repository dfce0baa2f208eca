# SPDX-License-Identifier: Apache-2.0
"""Shell completion: click's scripts, run by bash, fish and zsh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Call the completion function as bash does: COMP_WORDS and COMP_CWORD in, COMPREPLY out.
_BASH = """
. "$1" && shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
function=$(complete -p ghostbpf | sed -n 's/.* -F \\(\\S*\\) ghostbpf$/\\1/p')
"$function" ghostbpf "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
_COMMAND = f'#!/bin/sh\nexec "{sys.executable}" -m ghostbpf.tools.cli "$@"\n'


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ghostbpf command in its own directory, which becomes the first of PATH."""
    path = tmp_path_factory.mktemp("bin") / "ghostbpf"
    path.write_text(_COMMAND)
    path.chmod(0o755)
    return path


def _run(command: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", **environment}
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)


def _script(command: Path, shell: str) -> Path:
    path = command.with_name(f"completion.{shell}")
    path.write_text(_run(command, str(command), _GHOSTBPF_COMPLETE=f"{shell}_source").stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ghostbpf", "enc"), ["enclave"]),
        (("ghostbpf", "enclave", "d"), ["destroy"]),
        (("ghostbpf", "metrics", "--s"), ["--scx-stats"]),
        (("ghostbpf", "apply", "--pr"), ["--profile", "--prune"]),
        (("ghostbpf", "mcp", "--a"), ["--allow-changes"]),
        (("ghostbpf", "run", "bi"), ["biff"]),
        (("ghostbpf", "run", "biff", "--sl"), ["--slice"]),
        (("ghostbpf", "trace", "runql"), ["runqlat", "runqlen"]),
        (("ghostbpf", "nonsense", "x"), []),
        (("ghostbpf", "run", "no_such_policy", "--c"), []),
    ],
)
def test_bash_completes(command: Path, words: tuple[str, ...], expected: list[str]) -> None:
    done = _run(command, "bash", "-c", _BASH, "bash", str(_script(command, "bash")), *words)
    assert done.stdout.split() == expected
    assert not done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine (apt install fish)")
def test_fish_completes(command: Path) -> None:
    done = _run(command, "fish", "--no-config", "-c", f"source {_script(command, 'fish')}; complete -C 'ghostbpf enc'")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["enclave"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine (apt install zsh)")
def test_zsh_accepts_the_script(command: Path) -> None:
    script = _script(command, "zsh")
    assert script.read_text().startswith("#compdef ghostbpf\n")
    assert not _run(command, "zsh", "-n", str(script)).stderr
