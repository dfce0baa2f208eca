# SPDX-License-Identifier: Apache-2.0
"""A private apt: its own lists and sources, so that newer suites are in reach and the system's stay untouched."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .cache import locked, read_json, say, stage, write_json, write_whole
from .errors import ImageError
from .mirrors import Mirror

SUITES = ("trixie-backports", "forky", "sid")
MAX_AGE = 24 * 3600.0

_WANTED = re.compile(
    r"linux-(image|binary)-\d\S*-cloud-amd64$|linux-headers-\d\S*-(cloud-amd64|common)$|linux-kbuild-\d"
)


@dataclass(frozen=True)
class Package:
    """One package as a suite offers it."""

    name: str
    version: str
    suite: str
    depends: str = ""


def parse_packages(text: str, suite: str) -> Iterator[Package]:
    """The kernel packages in a Packages index (text of stanzas) of `suite`."""
    for match in re.finditer(r"^Package: (\S+)\n((?:.+\n?)*)", text, re.MULTILINE):
        if _WANTED.match(match[1]):
            fields = dict(re.findall(r"^([\w-]+): (.*)$", match[2], re.MULTILINE))
            yield Package(match[1], fields.get("Version", ""), suite, fields.get("Depends", ""))


class Apt:
    """apt-get with a state directory of its own under `home`, for `suites` of `mirror`."""

    def __init__(self, home: Path, mirror: Mirror, suites: Sequence[str] = SUITES) -> None:
        self.home = home
        self.mirror = mirror
        self.suites = tuple(suites)
        self._index = home / "packages.json"

    def packages(self, *, refresh: bool = False, max_age: float = MAX_AGE) -> list[Package]:
        """Kernel packages on offer.

        The lists are fetched when they are older than `max_age` seconds, came from another mirror, or `refresh`
        is set. When that fails and older lists are there, those are used and a warning is given; else ImageError.
        """
        kept = self._kept()
        if kept is not None and not refresh and time.time() - self._index.stat().st_mtime < max_age:
            return kept
        with locked(self.home / "lock"):
            try:
                return self._refresh()
            except ImageError as error:
                if kept is None:
                    raise
                say(f"warning: {error.message}; using the package lists of an earlier day")
                return kept

    def download(self, packages: Iterable[Package], where: Path) -> list[Path]:
        """Fetch the .deb files of `packages` into the directory `where`; raises ImageError.

        Where one cannot be had, the archive may have a later build of it than apt's lists say, or these are damaged:
        they are fetched again, and the packages are what the archive has then.
        """
        wanted = {p.name: p.version for p in packages}
        with locked(self.home / "lock"):
            try:
                self._fetch([f"{name}={version}" for name, version in wanted.items()], where)
            except ImageError:
                for part in where.glob("*.deb"):
                    part.unlink()
                self._refresh()
                self._fetch(wanted, where)
        return sorted(where.glob("*.deb"))

    def _fetch(self, names: Iterable[str], where: Path) -> None:
        with stage(f"fetching {', '.join(name.split('=')[0] for name in names)}"):
            self._run("download", *names, cwd=where)

    def _kept(self) -> list[Package] | None:
        document = read_json(self._index)
        if not isinstance(document, dict) or document.get("source") != self._source():
            return None
        return [Package(**fields) for fields in document["packages"]]

    def _source(self) -> str:
        return "".join(f"{self.mirror.source(suite)}\n" for suite in self.suites)

    def _refresh(self) -> list[Package]:
        for part in ("lists/partial", "archives/partial"):
            (self.home / part).mkdir(parents=True, exist_ok=True)
        write_whole(self.home / "sources.list", self._source().encode())
        with stage("fetching package lists"):
            self._run("update")
            targets = self._run("indextargets", "--format", "$(RELEASE) $(FILENAME)", "Created-By: Packages")
            found: list[Package] = []
            for line in targets.splitlines():
                suite, path = line.split(" ", 1)
                found += parse_packages(_read_index(path), suite)
        if not found:
            raise ImageError(
                f"{self.mirror.uri} offers no cloud kernel in {', '.join(self.suites)}",
                "name another Debian archive with --mirror",
            )
        write_json(self._index, {"source": self._source(), "packages": [asdict(p) for p in found]})
        return found

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        options = {
            "APT::Architecture": "amd64",
            # The directory is private to its owner, so apt's own user could not write to it.
            "APT::Sandbox::User": "root",
            "Dir::State": str(self.home),
            "Dir::State::Lists": str(self.home / "lists"),
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(self.home),
            "Dir::Etc::SourceList": str(self.home / "sources.list"),
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # An index that could not be fetched must be an error, not last week's answer.
            "APT::Update::Error-Mode": "any",
        }
        argv = ["apt-get", "-qq", *(w for k, v in options.items() for w in ("-o", f"{k}={v}")), *command]
        return run_tool(argv, f"apt-get {command[0]}", cwd=cwd)


def _read_index(path: str) -> str:
    # apt may keep its lists compressed (Acquire::GzipIndexes); its own helper reads whatever it wrote.
    return run_tool(["/usr/lib/apt/apt-helper", "cat-file", path], "apt-helper cat-file")


def run_tool(argv: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """The stdout of a host tool; raises ImageError with the last lines of its stderr."""
    try:
        done = subprocess.run(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
    except FileNotFoundError:
        raise ImageError(f"{argv[0]} is not installed", f"apt install {os.path.basename(argv[0])}") from None
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-6:]
        raise ImageError(f"{what} failed with status {done.returncode}: " + "; ".join(tail))
    return done.stdout.decode(errors="replace")


def unpack(debs: Iterable[Path], where: Path) -> None:
    """Unpack .deb files into `where`; raises ImageError."""
    for deb in debs:
        run_tool(["dpkg-deb", "-x", str(deb), str(where)], f"dpkg-deb -x {deb.name}")
