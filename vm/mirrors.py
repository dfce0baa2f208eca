# SPDX-License-Identifier: Apache-2.0
"""The Debian archive that this machine's apt configuration names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BadRequest, ImageError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR_VARIABLE = "GHOSTBPF_MIRROR"

_DEBIAN_SUITE = re.compile(
    r"(oldstable|stable|testing|unstable|bullseye|bookworm|trixie|forky|duke|sid)(-updates|-backports)?/?$"
)


@dataclass(frozen=True)
class Mirror:
    """A Debian archive and its keyring (None: the keys that apt trusts by default)."""

    uri: str
    signed_by: str | None = None

    def source(self, suite: str) -> str:
        """The sources.list line of `suite`."""
        option = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {option}{self.uri} {suite} main"


@dataclass(frozen=True)
class _Entry:
    uri: str
    suites: tuple[str, ...]
    signed_by: str | None


def parse_list(text: str) -> Iterator[_Entry]:
    """Entries of a one-line-style file (sources.list(5))."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
        if match:
            options = dict(o.split("=", 1) for o in (match["options"] or "").split() if "=" in o)
            yield _Entry(match["uri"], (match["suite"],), _keyring(options.get("signed-by")))


def parse_deb822(text: str) -> Iterator[_Entry]:
    """Entries of a deb822-style file (`*.sources`)."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            yield _Entry(uri, tuple(fields.get("suites", "").split()), _keyring(fields.get("signed-by")))


def _keyring(value: str | None) -> str | None:
    # Signed-By may also be a key or a fingerprint, which a one-line source cannot have.
    value = (value or "").strip()
    return value if value.startswith("/") and " " not in value else None


def _debian(entries: Iterable[_Entry]) -> Mirror | None:
    for entry in entries:
        if entry.uri.startswith("cdrom:"):
            continue
        if any(_DEBIAN_SUITE.match(suite) for suite in entry.suites):
            return Mirror(entry.uri.rstrip("/"), entry.signed_by)
    return None


def find_mirror(choice: str | None = None, etc: Path = Path("/etc/apt")) -> Mirror:
    """The archive to use: `choice`, else `$GHOSTBPF_MIRROR`, else the archive in apt's configuration.

    Raises BadRequest if that is not a URI, ImageError if no Debian archive is configured.
    """
    given = choice or os.environ.get(MIRROR_VARIABLE)
    if given:
        if not re.match(r"[a-z+]+:/\S+$", given):
            raise BadRequest(f"mirror {given!r} is not a URI", "a URI as in apt's sources, such as http://HOST/debian")
        return Mirror(given.rstrip("/"), KEYRING if Path(KEYRING).exists() else None)
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace", encoding="utf-8")
        mirror = _debian(parse_deb822(text) if path.suffix == ".sources" else parse_list(text))
        if mirror:
            return mirror
    raise ImageError(
        f"no Debian archive in the apt configuration under {etc}",
        f"name one with --mirror or ${MIRROR_VARIABLE}",
    )
