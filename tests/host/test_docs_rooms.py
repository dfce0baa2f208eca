# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.*: the picture of the directories agrees with the imports of the code."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = (ROOT / "docs" / "architecture.svg").read_text()
PAGE = (ROOT / "docs" / "architecture.md").read_text()
#: By the first directory of each box: all its directories.
ROOMS = {names.split()[0]: names.split() for names in re.findall(r'data-room="([^"]+)"', PICTURE)}
ARROWS = [tuple(pair.split()) for pair in re.findall(r'data-import="([^"]+)"', PICTURE)]


def room_of(module: str) -> str | None:
    """The innermost box that holds a module, given as a path below the repository."""
    names = [(name, room) for room, names in ROOMS.items() for name in names]
    inside = [(len(name), room) for name, room in names if module == name or module.startswith(f"{name}/")]
    return max(inside)[1] if inside else None


def imports(path: Path) -> set[str]:
    """The modules of ghostbpf that a file imports, as paths below the repository."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += tuple((node.module or "").split(".")) if node.module else ()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ghostbpf."):
            base = tuple((node.module or "").split("."))[1:]
        else:
            continue
        for alias in node.names:
            module = "/".join((*base, alias.name))
            is_module = (ROOT / f"{module}.py").exists() or (ROOT / module).is_dir()
            found.add(module if is_module else "/".join(base))
    return found


@functools.cache
def all_imports() -> set[tuple[str, str]]:
    """Each import between boxes: the importing box, and the imported module."""
    found = set()
    for top in {room.partition("/")[0] for room in ROOMS}:
        for path in (ROOT / top).rglob("*.py"):
            here = room_of(str(path.relative_to(ROOT).with_suffix("")))
            for module in imports(path):
                if here is not None and room_of(module) not in (None, here):
                    found.add((here, module))
    return found


def below(room: str) -> set[str]:
    """The boxes that arrows lead to, directly or not."""
    direct = {target for source, target in ARROWS if source == room}
    return direct.union(*(below(target) for target in direct))


def test_each_import_follows_the_arrows() -> None:
    assert {(here, module) for here, module in all_imports() if room_of(module) not in below(here)} == set()


@pytest.mark.parametrize("arrow", [arrow for arrow in ARROWS if arrow != ("loaders", "bpf")])
def test_each_arrow_is_an_import(arrow: tuple[str, str]) -> None:
    assert arrow in {(here, room_of(module)) for here, module in all_imports()}


def test_each_arrow_points_down() -> None:
    heights = {room: float(y) for room, y in re.findall(r'data-room="([^" ]+)[^>]*><rect x="\d+" y="(\d+)"', PICTURE)}
    assert heights.keys() == ROOMS.keys()
    assert [arrow for arrow in ARROWS if heights[arrow[0]] >= heights[arrow[1]]] == []


def test_page_has_a_sentence_for_each_package() -> None:
    packages = {str(path.parent.relative_to(ROOT)) for top in ROOMS for path in (ROOT / top).rglob("__init__.py")}
    packages |= {str(path.parent.relative_to(ROOT)) for path in (ROOT / "bpf").glob("*/*.bpf.c")}
    assert [name for name in packages if f"`{name}`" not in PAGE] == []
