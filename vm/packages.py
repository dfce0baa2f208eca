# SPDX-License-Identifier: Apache-2.0
"""A private apt with its own lists and sources: it reaches newer suites and does not change the system's."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .cache import locked, log, read_json, stage, write_atomically, write_json
from .errors import ImageError
from .mirrors import Mirror

SUITES = ("trixie-backports", "forky", "sid")
MAX_AGE = 24 * 3600.0

_KERNEL_PACKAGE = re.compile(
    r"linux-(image|binary)-\d\S*-cloud-amd64$|linux-headers-\d\S*-(cloud-amd64|common)$|linux-kbuild-\d"
)


@dataclass(frozen=True)
class Package:
    """A package of a suite."""

    name: str
    version: str
    suite: str
    depends: str = ""


def parse_packages(text: str, suite: str) -> Iterator[Package]:
    """The kernel packages in `text`, a Packages index of `suite`."""
    for match in re.finditer(r"^Package: (\S+)\n((?:.+\n?)*)", text, re.MULTILINE):
        if _KERNEL_PACKAGE.match(match[1]):
            fields = dict(re.findall(r"^([\w-]+): (.*)$", match[2], re.MULTILINE))
            yield Package(match[1], fields.get("Version", ""), suite, fields.get("Depends", ""))


class Apt:
    """apt-get for `suites` of `mirror`, with its state directory under `home`."""

    def __init__(self, home: Path, mirror: Mirror, suites: Sequence[str] = SUITES) -> None:
        self.home = home
        self.mirror = mirror
        self.suites = tuple(suites)
        self._index = home / "packages.json"

    def packages(self, *, refresh: bool = False, max_age: float = MAX_AGE) -> list[Package]:
        """The kernel packages on offer.

        The lists are fetched if they are older than `max_age` seconds or come from another mirror, or with `refresh`.
        If that fails, older lists are used with a warning; raises ImageError if there are none.
        """
        cached = self._cached()
        if cached is not None and not refresh and time.time() - self._index.stat().st_mtime < max_age:
            return cached
        with locked(self.home / "lock"):
            try:
                return self._refresh()
            except ImageError as error:
                if cached is None:
                    raise
                log(f"warning: {error.message}; using older package lists")
                return cached

    def download(self, packages: Iterable[Package], where: Path) -> list[Path]:
        """Fetch the .deb files of `packages` into the directory `where`; raises ImageError.

        If that fails, apt's lists may be outdated or damaged: they are fetched again, and then the packages in the
        versions that the archive has.
        """
        versions = {p.name: p.version for p in packages}
        with locked(self.home / "lock"):
            try:
                self._fetch([f"{name}={version}" for name, version in versions.items()], where)
            except ImageError:
                for part in where.glob("*.deb"):
                    part.unlink()
                self._refresh()
                self._fetch(versions, where)
        return sorted(where.glob("*.deb"))

    def _fetch(self, names: Iterable[str], where: Path) -> None:
        with stage(f"fetching {', '.join(name.split('=')[0] for name in names)}"):
            self._run("download", *names, cwd=where)

    def _cached(self) -> list[Package] | None:
        document = read_json(self._index)
        if not isinstance(document, dict) or document.get("source") != self._source():
            return None
        return [Package(**fields) for fields in document["packages"]]

    def _source(self) -> str:
        return "".join(f"{self.mirror.source(suite)}\n" for suite in self.suites)

    def _refresh(self) -> list[Package]:
        for part in ("lists/partial", "archives/partial"):
            (self.home / part).mkdir(parents=True, exist_ok=True)
        write_atomically(self.home / "sources.list", self._source().encode())
        with stage("fetching package lists"):
            self._run("update")
            targets = self._run("indextargets", "--format", "$(RELEASE) $(FILENAME)", "Created-By: Packages")
            packages: list[Package] = []
            for line in targets.splitlines():
                suite, path = line.split(" ", 1)
                packages += parse_packages(_read_index(path), suite)
        if not packages:
            raise ImageError(
                f"{self.mirror.uri} offers no cloud kernel in {', '.join(self.suites)}",
                "name another Debian archive with --mirror",
            )
        write_json(self._index, {"source": self._source(), "packages": [asdict(p) for p in packages]})
        return packages

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        options = {
            "APT::Architecture": "amd64",
            # The directory is private to its owner: apt's own user cannot write to it.
            "APT::Sandbox::User": "root",
            "Dir::State": str(self.home),
            "Dir::State::Lists": str(self.home / "lists"),
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(self.home),
            "Dir::Etc::SourceList": str(self.home / "sources.list"),
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A failed fetch of an index must be an error: by default apt keeps the old index.
            "APT::Update::Error-Mode": "any",
        }
        argv = ["apt-get", "-qq", *(w for k, v in options.items() for w in ("-o", f"{k}={v}")), *command]
        return run_tool(argv, f"apt-get {command[0]}", cwd=cwd)


def _read_index(path: str) -> str:
    # apt may compress its lists (Acquire::GzipIndexes); its helper reads both forms.
    return run_tool(["/usr/lib/apt/apt-helper", "cat-file", path], "apt-helper cat-file")


def run_tool(argv: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """Run a host tool and return its stdout; raises ImageError with the last lines of its stderr."""
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
