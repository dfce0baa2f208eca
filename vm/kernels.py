# SPDX-License-Identifier: Apache-2.0
"""Kernels that a guest can boot: those on offer, those that a name selects, and their cached images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .btf import Verdict, btf_section, judge, vmlinux_of
from .cache import locked, log, read_json, scratch_dir, write_atomically, write_json
from .errors import ImageError, KernelNotFound
from .packages import Apt, Package, unpack

_IMAGE = re.compile(r"linux-(?:image|binary)-((\d+(?:\.\d+)*)\S*-cloud-amd64)$")
FLAVOUR = "-cloud-amd64"
_NUMBERS = re.compile(r"\d+(\.\d+)*")
_HEADER_PARTS = re.compile(r"(linux-headers-\S+-common|linux-kbuild-[^\s,]+)")


@dataclass(frozen=True)
class Kernel:
    """A kernel on offer or in the cache; `release` is its `uname -r`, `package` is None if it is only in the cache."""

    release: str
    suite: str
    package: Package | None
    verdict: Verdict | None = None
    cached: bool = False

    @property
    def order(self) -> tuple[tuple[int, ...], str]:
        """The sort key: the upstream version, then the build."""
        return upstream(self.release), self.release


@dataclass(frozen=True)
class BootImage:
    """A kernel ready to boot; `vmlinux` is the uncompressed ELF file, which boots fastest."""

    release: str
    vmlinux: Path
    verdict: Verdict


def upstream(release: str) -> tuple[int, ...]:
    """The upstream version in a release: `7.3.4+deb13-cloud-amd64` is (7, 3, 4)."""
    match = _NUMBERS.match(release)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def on_offer(packages: Iterable[Package]) -> list[Kernel]:
    """The kernels in a package list, oldest first, each once.

    Up to 6.18 the image is in linux-image-RELEASE; from 6.19 on it is in linux-binary-RELEASE.
    """
    best: dict[str, Package] = {}
    for package in packages:
        match = _IMAGE.match(package.name)
        if match and (match[1] not in best or best[match[1]].name.startswith("linux-image-")):
            best[match[1]] = package
    return sorted((Kernel(release, p.suite, p) for release, p in best.items()), key=lambda kernel: kernel.order)


def matching(spec: str, kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that `spec` selects, in order of preference.

    `newest`; `oldest`; a series or version by its numbers (`7.3`, `7.3.4`: its newest build first); or one build, with
    or without its flavour (`7.3.4+deb13`).
    """
    oldest_first = sorted(kernels, key=lambda kernel: kernel.order)
    if spec == "oldest":
        return oldest_first
    newest_first = oldest_first[::-1]
    if spec == "newest":
        return newest_first
    if _NUMBERS.fullmatch(spec):
        version = upstream(spec)
        return [k for k in newest_first if upstream(k.release)[: len(version)] == version]
    return [k for k in newest_first if spec in (k.release, k.release.removesuffix(FLAVOUR))]


class KernelCatalog:
    """The kernels in a cache directory and in the archive."""

    def __init__(self, home: Path, apt: Apt) -> None:
        self.home = home
        self.apt = apt

    def list(self, *, refresh: bool = False) -> list[Kernel]:
        """All kernels on offer or in the cache, oldest first, with their verdicts if known; raises ImageError."""
        cached = {path.parent.name for path in self.home.glob("[0-9]*/vmlinux")}
        try:
            kernels = {k.release: k for k in on_offer(self.apt.packages(refresh=refresh))}
        except ImageError as error:
            if not cached:
                raise
            kernels = {}
            log(f"warning: {error.message}; only kernels in the cache are available")
        for release in cached:
            kernels.setdefault(release, Kernel(release, "cache only", None))
        judged = [
            Kernel(k.release, k.suite, k.package, _verdict(self._record(k.release)), k.release in cached)
            for k in kernels.values()
        ]
        return sorted(judged, key=lambda kernel: kernel.order)

    def resolve(self, spec: str, *, refresh: bool = False) -> BootImage:
        """The kernel that `spec` selects (see `matching`; or the path of a kernel image), fetched if missing.

        A name that selects several kernels never resolves to an unusable one; a full version does, with a warning.
        Raises KernelNotFound and ImageError.
        """
        if "/" in spec:
            return self._from_path(Path(spec))
        candidates = matching(spec, self.list(refresh=refresh))
        if not candidates and not refresh:
            candidates = matching(spec, self.list(refresh=True))
        if not candidates:
            raise KernelNotFound(
                f"no kernel {spec!r} on offer in {', '.join(self.apt.suites)}",
                "newest, oldest, a series such as 7.3, a version of `ghostbpf vm --list`, or the path of an image",
            )
        rejected: list[str] = []
        for kernel in candidates:
            verdict = kernel.verdict or self.fetch(kernel).verdict
            if verdict.usable:
                return self.fetch(kernel)
            rejected.append(f"{kernel.release}: {verdict.reason}")
        if spec.count(".") > 1:
            log(f"warning: {rejected[0]}; no scheduler can be loaded")
            return self.fetch(candidates[0])
        raise KernelNotFound(
            f"no usable kernel for {spec!r}: " + "; ".join(rejected), "name a full version to boot an unusable kernel"
        )

    def fetch(self, kernel: Kernel) -> BootImage:
        """Fetch `kernel` into the cache and judge it, unless it is there and judged."""
        place = self.home / kernel.release
        with locked(self.home / f".{kernel.release}.lock"):
            if not (place / "vmlinux").exists() or _verdict(self._record(kernel.release)) is None:
                if kernel.package is None:
                    raise KernelNotFound(f"kernel {kernel.release} is no longer on offer", "ghostbpf vm --list")
                with scratch_dir(self.home, kernel.release) as scratch:
                    unpack(self.apt.download([kernel.package], scratch), scratch)
                    self._store(_image_in(scratch, kernel.release), place)
        return self._boot_image(kernel.release)

    def headers(self, release: str) -> Path:
        """A tree with usr/src and usr/lib/modules of the kernel's headers, fetched if missing.

        Raises ImageError; the archive removes a kernel's headers earlier than the kernel.
        """
        place = self.home / release / "headers"
        with locked(self.home / f".{release}.lock"):
            if place.is_dir():
                return place
            parts = header_packages(release, self.apt.packages())
            with scratch_dir(self.home, release) as scratch:
                (scratch / "headers").mkdir()
                unpack(self.apt.download(parts, scratch), scratch / "headers")
                place.parent.mkdir(exist_ok=True)
                (scratch / "headers").replace(place)
        return place

    def _record(self, key: str) -> dict[str, Any]:
        document = read_json(self.home / key / "verdict.json")
        return document if isinstance(document, dict) else {}

    def _store(self, image: Path, place: Path, **more: Any) -> None:
        elf = vmlinux_of(image.read_bytes())
        blob = btf_section(elf)
        verdict = judge(blob) if blob else Verdict(sched_ext=False)
        banner = re.search(rb"Linux version (\d\S*) ", elf)
        # Write the kernel first: if only one of the two files is written, it is fetched again.
        write_atomically(place / "vmlinux", elf)
        release = banner[1].decode() if banner else image.name
        record = {"release": release, "sched_ext": verdict.sched_ext, "malformed": verdict.malformed}
        write_json(place / "verdict.json", {**record, **more})

    def _boot_image(self, key: str) -> BootImage:
        record = self._record(key)
        verdict = _verdict(record)
        if verdict is None:
            raise ImageError(f"{self.home / key} is damaged", f"rm -r {self.home / key}")
        return BootImage(record.get("release", key), self.home / key / "vmlinux", verdict)

    def _from_path(self, path: Path) -> BootImage:
        try:
            stat = path.stat()
        except OSError as error:
            raise KernelNotFound(f"kernel image {path}: {(error.strerror or '').lower()}") from None
        if not path.is_file():
            raise KernelNotFound(f"kernel image {path} is not a file")
        # One cache entry for each path, so that the kernels of repeated builds do not accumulate.
        key = f"path-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        source = [stat.st_ino, stat.st_mtime_ns, stat.st_size]
        with locked(self.home / f".{key}.lock"):
            if self._record(key).get("source") != source:
                try:
                    self._store(path, self.home / key, source=source)
                except ImageError as error:
                    raise ImageError(f"{path}: {error.message}", error.hint) from None
            image = self._boot_image(key)
        if not image.verdict.usable:
            log(f"warning: {path}: {image.verdict.reason}; no scheduler can be loaded")
        return image


def header_packages(release: str, packages: Sequence[Package]) -> list[Package]:
    """The packages with the headers of kernel `release`; raises ImageError if one is not on offer."""
    by_name = {p.name: p for p in packages}
    first = by_name.get(f"linux-headers-{release}")
    if first is None:
        prefix, suffix = "linux-headers-", FLAVOUR
        named = (name.removeprefix(prefix) for name in by_name if name.startswith(prefix) and name.endswith(suffix))
        offered = sorted(named, key=upstream)
        raise ImageError(
            f"the headers of kernel {release} are not on offer",
            f"one of {', '.join(offered)}" if offered else "name another archive with --mirror",
        )
    names = _HEADER_PARTS.findall(first.depends)
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ImageError(f"{first.name} needs {', '.join(missing)}, not on offer", "ghostbpf vm --refresh")
    return [first, *(by_name[name] for name in names)]


def _verdict(record: dict[str, Any]) -> Verdict | None:
    if "sched_ext" not in record:
        return None
    return Verdict(bool(record["sched_ext"]), tuple(record.get("malformed", ())))


def _image_in(tree: Path, release: str) -> Path:
    for place in (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz", f"lib/modules/{release}/vmlinuz"):
        if (tree / place).is_file():
            return tree / place
    raise ImageError(f"the packages of kernel {release} have no vmlinuz", "another kernel")
