# SPDX-License-Identifier: Apache-2.0
"""mkdocs hook: pages from the top of the repository, links to its files, and the package that mkdocstrings reads.

`<!-- include PATH -->` on a page becomes a block with that file.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_PACKAGES = ("hints", "loaders", "schedulers")
_INCLUDE = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")


def on_startup(**_: Any) -> None:
    """Link the packages into one directory: their parent is the repository, which no tool should walk as a package.

    mkdocstrings ignores a path that does not exist when it is configured, so this runs before that.
    """
    namespace = _ROOT / "build" / "docs" / "ghostbpf"
    namespace.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        with contextlib.suppress(FileExistsError):
            (namespace / name).symlink_to(_ROOT / name)


def on_config(config: Any) -> Any:
    """Add the repository's own pages to the section "Project"."""
    (project,) = (section["Project"] for section in config.nav if "Project" in section)
    project.extend(name for name in _PAGES if (_ROOT / name).exists())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages, and each file that a page links to."""
    for name in _PAGES:
        if (_ROOT / name).exists():
            files.append(File.generated(config, name, content=_seen_from_docs((_ROOT / name).read_text())))
    linked = {
        target for page in list(files) if page.is_documentation_page() for target in _outside(page.content_string, page)
    }
    for target in sorted(linked.difference(_PAGES)):
        files.append(File.generated(config, _copy(target), abs_src_path=str(_ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at the copies of their files."""
    here = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        target = _target(match[2], here)
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(target if target in _PAGES else _copy(target), here or ".") + match[3]

    return _LINK.sub(replaced, _INCLUDE.sub(_included, markdown))


def _included(match: re.Match[str]) -> str:
    text = (_ROOT / match[1]).read_text()
    return f"```{'python' if match[1].endswith('.py') else 'c'}\n{text}```"


def _copy(target: str) -> str:
    """Where the site has a file of the repository; with a name that makes no page of it."""
    return f"source/{target}.txt" if target.endswith(".md") else f"source/{target}"


def _seen_from_docs(markdown: str) -> str:
    """The text of a page at the top of the repository, its links as seen from docs/."""

    def replaced(match: re.Match[str]) -> str:
        path = match[2]
        if path in _PAGES:
            return match[0]
        return match[1] + (path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}") + match[3]

    return _LINK.sub(replaced, markdown)


def _outside(markdown: str, page: File) -> set[str]:
    here = posixpath.dirname(page.src_uri)
    targets = (_target(match[2], here) for match in _LINK.finditer(markdown))
    return {target for target in targets if target is not None}


def _target(link: str, here: str) -> str | None:
    """The file at the top of the repository, or below, that a link of a page in docs/``here`` names; None in docs/."""
    path = posixpath.normpath(posixpath.join("docs", here, link))
    if path.startswith(("docs/", "..", "/")):
        return None
    return path if (_ROOT / path).is_file() else None
