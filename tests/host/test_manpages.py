# SPDX-License-Identifier: Apache-2.0
"""Each command has a man page with all sections, which shows what --help shows, and man accepts it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools import manpages
from ghostbpf.tools.trace.command import TOOLS

_SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"]
needs_man = pytest.mark.skipif(shutil.which("man") is None, reason="no man on this machine (apt install man-db)")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages by name, generated as in the package's build."""
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "-m", "ghostbpf.tools.manpages", str(directory)], check=True)
    return {path.name.removesuffix(".1"): path for path in directory.iterdir()}


def _shown(page: Path) -> str:
    """Return the page as man formats it, in lines of 1,000 columns, so that none is broken."""
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(["man", "-l", str(page)], check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def _help(command: str) -> str:
    argv = [sys.executable, "-m", "ghostbpf.tools.cli", *command.split(), "--help"]
    return subprocess.check_output(argv, text=True)


def test_each_command_policy_and_tool_has_a_page(pages: dict[str, Path]) -> None:
    expected = {"ghostbpf", "ghostbpf-enclave-add", "ghostbpf-fd-send", "ghostbpf-hints-admit"}
    expected |= {"ghostbpf-top", "ghostbpf-status"}
    expected |= {
        f"ghostbpf-{name}"
        for name in (
            "run",
            "enclave",
            "hints",
            "pushtosched",
            "trace",
            "record",
            "explain",
            "compare",
            "bench",
            "metrics",
            "mcp",
            "apply",
            "service",
            "fd",
            "new",
            "vm",
        )
    }
    expected |= {f"ghostbpf-run-{name}" for name in POLICIES}
    expected |= {f"ghostbpf-trace-{name}" for name in TOOLS}
    assert expected <= pages.keys()
    assert "ghostbpf-enclave-enrol" not in pages, "a hidden alias of auto-join"


def test_page_has_all_sections_in_order(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        sections = re.findall(r"^\.SH (.*)$", path.read_text(), re.MULTILINE)
        assert [section for section in sections if section != "COMMANDS"] == _SECTIONS, name


@needs_man
def test_man_has_no_warning(pages: dict[str, Path]) -> None:
    for path in pages.values():
        command = ["man", "--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert not done.stderr, path.name


@needs_man
@pytest.mark.parametrize(
    "command", ["enclave", "enclave add", "fd", "hints cflags", "run shinjuku", "trace offcputime", "bench", "vm"]
)
def test_page_shows_what_help_shows(pages: dict[str, Path], command: str) -> None:
    shown, help_text = _shown(pages[f"ghostbpf-{command.replace(' ', '-')}"]), _help(command)
    options = re.findall(r"^  (-.*?)(?:  |$)", help_text, re.MULTILINE)
    examples = re.findall(r"^    ([\w].*)", help_text.partition("xamples:")[2], re.MULTILINE)
    assert options
    for text in (*options, *examples):
        assert re.search(rf"^ +{re.escape(text)}( |$)", shown, re.MULTILINE), text


@needs_man
def test_name_is_what_whatis_finds(pages: dict[str, Path]) -> None:
    done = subprocess.run(["lexgrog", *map(str, pages.values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    names = re.findall(r': "(\S+) - \S', done.stdout)
    assert sorted(names) == sorted(pages)


@needs_man
def test_exit_status_is_the_commands_own(pages: dict[str, Path]) -> None:
    for name in ("run", "run-biff", "trace-runqlat", "vm"):
        section = _shown(pages[f"ghostbpf-{name}"]).partition("EXIT STATUS")[2]
        assert section.split()[0] == "CMD's", name
        assert "128+N" in section, name


@needs_man
@pytest.mark.parametrize(
    "text",
    [".so /etc/passwd", "'br", "a\\fBb\\n", "--x='~ ^'", '"q"', "100% - 5 µs …", "`"],
    ids=lambda text: repr(text),
)
def test_text_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    command = click.Command("x", help=f"Do.\n\n{text}", epilog=f"\b\nExamples:\n  {text}")
    (tmp_path / "x.1").write_text(manpages.page(command.make_context("x", [])))
    shown = [line.strip() for line in _shown(tmp_path / "x.1").splitlines()]
    assert shown.count(text) == 2
