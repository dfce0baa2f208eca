# SPDX-License-Identifier: Apache-2.0
"""The documentation: the site builds without a warning, and its pages agree with the code and the commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.source import BPF_DIR
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.cli import ghostbpf

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import DOCS, PAGES, RUN_ELSEWHERE, RUN_IN_GUEST, RUN_IN_GUEST_SOAK, blocks, commands, prompted, runs_on_host

ROOT = DOCS.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return directory


def command_contexts(ctx: click.Context | None = None) -> Iterator[click.Context]:
    """Each command that help lists, and those below it."""
    ctx = ctx or ghostbpf.make_context("ghostbpf", [], resilient_parsing=True)
    if isinstance(group := ctx.command, click.Group):
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if command is not None and not command.hidden:
                below = command.make_context(name, [], parent=ctx, resilient_parsing=True)
                yield below
                yield from command_contexts(below)


def test_each_command_has_a_page_with_its_options(site: Path) -> None:
    for ctx in command_contexts():
        top = ctx.command_path.split()[1:]
        page = site / "commands" / f"{'-'.join(top[:1] if top[0] == 'run' else top)}.html"
        text = page.read_text()
        for parameter in ctx.command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert option in text, f"{option} is not on {page.name}"


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_has_a_page_with_its_options(site: Path, name: str) -> None:
    policy = POLICIES[name]
    agent = getattr(policy, "agent", None)
    text = (site / "policies" / f"{name}.html").read_text()
    for option in policy.options if agent is None else agent.options:
        assert f"--{option.name}" in text
        assert option.default in text


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* rel=\"?stylesheet[^>]* href=\"?([^\" >]+)",
            page.read_text(),
        )
        assert [url for urls in loaded for url in urls if url.startswith(("http", "//"))] == [], page.name


def test_wakeup_names_functions_where_they_are() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", (DOCS / "wakeup.md").read_text(), re.MULTILINE)
    ours = [(name, path) for name, path in rows if not path.startswith(("kernel/", "net/"))]
    assert len(ours) > 25
    for name, path in ours:
        owner, _, function = name.rpartition(".")
        text = (ROOT / path).read_text()
        pattern = (
            rf"^\s*def {function}\(" if path.endswith(".py") else rf"^(?:BPF_PROG\({function}\b|[\w* ]+\b{function}\()"
        )
        assert re.search(pattern, text, re.MULTILINE), f"{path} has no {name}"
        assert not owner or f"class {owner}" in text


def test_wakeup_names_helpers_that_exist() -> None:
    text = (DOCS / "wakeup.md").read_text()
    helpers = set(re.findall(r"\(`([a-z]\w+)`", text))
    sources = "\n".join(path.read_text() for path in BPF_DIR.rglob("*.[ch]"))
    assert len(helpers) > 8
    for name in helpers:
        assert re.search(rf"\b{name}\(", sources), name
    for name, path in re.findall(r"`(\w+)`\s+in\s+`(bpf/[^`]+)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} has no {name}"


def test_abi_page_has_each_field_and_constant_that_agents_use() -> None:
    text = (DOCS / "abi.md").read_text()
    ffi = abi.load(BPF_DIR / "abi.h")
    for struct in ("message", "status_word", "txn", "channel"):
        for field, _ in ffi.typeof(f"struct {struct}").fields or ():
            assert field == "reserved" or f"`{field}`" in text, f"struct {struct} has {field}"
    for enum in ("message_type", "task_state", "agent_state", "txn_state"):
        for name in ffi.typeof(f"enum {enum}").relements:
            assert f"`{name}`" in text, name
    headers = "".join(path.read_text() for path in (BPF_DIR / "agent").glob("*.h"))
    loaders = {"call_depart", "call_cpus_changed"}  # agents do not call them
    programs = set(re.findall(r"^int (call_\w+)\(", headers, re.MULTILINE)) - loaders
    assert len(programs) > 4
    assert [name for name in programs if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", [page for page in PAGES if prompted(page)])
def test_each_command_line_on_a_page_is_accepted(page: str) -> None:
    for words in prompted(page):
        ctx = ghostbpf.make_context("ghostbpf", [], resilient_parsing=True)
        while isinstance(group := ctx.command, click.Group):
            name, *words = ["biff" if word == "POLICY" else word for word in words]
            if name == "--help" or name.partition(":")[0].endswith(".py"):
                break
            command = group.get_command(ctx, name)
            assert command is not None, name
            lenient = isinstance(command, click.Group) or "--help" in words
            ctx = command.make_context(name, [] if lenient else words, parent=ctx, resilient_parsing=lenient)


def test_example_of_a_registered_policy_is_one() -> None:
    (block,) = blocks("policies/index.md", "python")
    names: dict[str, Any] = {"__file__": __file__}
    exec(block, names)
    assert names["MINE"].parse({"slice": "2ms"}).values == {"slice_ns": 2_000_000}
    assert names["MINE"].source == Path(__file__).with_name("mine.bpf.c")


def test_each_console_line_is_run_by_a_test() -> None:
    assert [
        page for page in PAGES if commands(page) and page not in (*RUN_IN_GUEST, *RUN_IN_GUEST_SOAK, *RUN_ELSEWHERE)
    ] == []


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page) if runs_on_host(line)}))
def test_commands_that_need_no_sched_ext_run_here(line: str) -> None:
    words = shlex.split(line)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "ghostbpf.tools.cli", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or "nothing matched" in done.stderr
