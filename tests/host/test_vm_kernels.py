# SPDX-License-Identifier: Apache-2.0
"""The guest's kernels: the check of an image, and the resolution of a name. The images and packages are made here."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from ghostbpf.vm import ImageError, KernelCatalog, KernelNotFound
from ghostbpf.vm.btf import Verdict, btf_section, judge, release_and_version, vmlinux_of
from ghostbpf.vm.mirrors import Mirror
from ghostbpf.vm.packages import Apt, Package

# Kernel images, made here: a BTF blob in an ELF file in a bzImage


def btf_blob(functions: dict[str, Sequence[str]], *, sched_ext: bool = True) -> bytes:
    """BTF of functions, each with the names of its parameter types: `struct NAME *` and `const struct NAME *`."""
    strings, types = bytearray(b"\0"), []

    def name(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text) - 1

    def add(label: str, kind: int, count: int, size: int, rest: bytes = b"") -> int:
        types.append(struct.pack("<III", name(label) if label else 0, kind << 24 | count, size) + rest)
        return len(types)

    number = add("int", 1, 0, 4, struct.pack("<I", 0x01000020))
    if sched_ext:
        add("sched_ext_ops", 4, 1, 4, struct.pack("<III", name("flags"), number, 0))
    for label, parameters in functions.items():
        ids = []
        for text in parameters:
            target = number
            if match := re.match(r"(const )?struct (\w+) \*", text):
                target = add(match[2], 4, 0, 0)
                target = add("", 10, 0, target) if match[1] else target
                target = add("", 2, 0, target)
            ids.append(target)
        prototype = add("", 13, len(ids), number, b"".join(struct.pack("<II", 0, i) for i in ids))
        add(label, 12, 1, prototype)
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + bytes(strings)


def elf_file(blob: bytes | None, release: str = "1.2.3-test") -> bytes:
    names = b"\0.shstrtab\0.BTF\0"
    banner = f"Linux version {release} (builder)".encode()
    body = names + banner + (blob or b"")
    heads = [(0, 0, 0), (1, 64, len(names))] + ([(11, 64 + len(names) + len(banner), len(blob))] if blob else [])
    table = b"".join(struct.pack("<IIQQQQIIQQ", n, 1, 0, 0, at, size, 0, 0, 1, 0) for n, at, size in heads)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    numbers = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(heads), 1)
    return ident + numbers + body + table


def bz_image(elf: bytes) -> bytes:
    payload = lzma.compress(elf) + struct.pack("<I", len(elf))
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 8, len(payload))
    return bytes(head) + b"stubcode" + payload


SOUND = {"scx_bpf_kick_cpu": ["int", "int"], "scx_bpf_create_dsq_impl": ["int", "const struct bpf_prog_aux *"]}
BROKEN = {
    "scx_bpf_create_dsq": ["int", "const struct bpf_prog_aux *"],
    "bpf_iter_scx_dsq_new": ["struct x *", "const struct bpf_prog_aux *"],
    "__scx_bpf_dsq_insert_vtime": ["struct bpf_prog_aux *"],
}
ALSO_SOUND = {
    "scx_bpf_first_only": ["const struct bpf_prog_aux *", "int"],
    "scx_bpf_other_struct": ["const struct bpf_prog *"],
    "scx_bpf_nothing": [],
    "bpf_stream_vprintk": ["const struct bpf_prog_aux *"],
}


def test_kfuncs_that_still_show_their_aux_parameter_are_malformed() -> None:
    verdict = judge(btf_blob({**SOUND, **BROKEN, **ALSO_SOUND}))
    assert set(verdict.malformed) == set(BROKEN)
    assert not verdict.usable
    assert verdict.reason == "3 malformed kfuncs"


def test_kernel_with_sched_ext_is_usable_and_one_without_is_not() -> None:
    assert judge(btf_blob({**SOUND, **ALSO_SOUND})) == Verdict(True, ())
    without = judge(btf_blob(SOUND, sched_ext=False))
    assert (without.usable, without.reason) == (False, "no sched_ext")


def test_btf_is_found_through_bzimage_and_elf() -> None:
    blob = btf_blob(SOUND)
    elf = elf_file(blob)
    assert vmlinux_of(bz_image(elf)) == elf
    assert vmlinux_of(elf) == elf
    assert btf_section(elf) == blob
    assert btf_section(elf_file(None)) is None


def test_kernel_tells_what_uname_will_report() -> None:
    """A kernel also has its banner's format, and the banner of its version file, without the build's number."""
    banner = "Linux version 7.3.4-cloud (team@debian.org) (gcc (Debian 14) 14.2, GNU ld) %sSMP Debian 7.3.4-1 (2026)%s"
    formats = "Linux version %s (team@debian.org) (gcc) %s\n\0", banner % ("# ", "\0"), banner % ("#1 ", "\n\0")
    elf = elf_file(None) + "".join(formats).encode()
    assert release_and_version(elf) == ("7.3.4-cloud", "#1 SMP Debian 7.3.4-1 (2026)")
    with pytest.raises(ImageError, match="does not tell its version"):
        release_and_version(elf_file(None))


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (b"root:x:0:0", "neither ELF nor bzImage"),
        (bz_image(b"no kernel at all"), "not ELF"),
        (bz_image(elf_file(None))[:0x248] + struct.pack("<II", 0, 16) + bytes(2000), "neither zstd, xz nor gzip"),
    ],
)
def test_file_that_is_no_kernel_image_is_refused(image: bytes, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        vmlinux_of(image)


# The catalog: kernels from an archive of packages built here


class Archive(Apt):
    """An archive whose packages are made on request."""

    def __init__(self, home: Path, verdicts: dict[str, bytes | None]) -> None:
        super().__init__(home, Mirror("http://archive.invalid/debian"))
        self.images = verdicts
        self.fetched: list[str] = []
        self.reachable = True

    def packages(self, *, refresh: bool = False, max_age: float = 0) -> list[Package]:
        if not self.reachable:
            raise ImageError("no network")
        return [Package(f"linux-binary-{release}", "1", "sid") for release in self.images]

    def download(self, packages: Iterable[Package], where: Path) -> list[Path]:
        if not self.reachable:
            raise ImageError("no network")
        debs = []
        for package in packages:
            release = package.name.removeprefix("linux-binary-")
            self.fetched.append(release)
            made = where / f"make-{release}"
            # Both layouts of Debian's kernel packages.
            place = "boot/vmlinuz-" + release if release.startswith("6") else f"usr/lib/modules/{release}/vmlinuz"
            (made / place).parent.mkdir(parents=True)
            (made / place).write_bytes(bz_image(elf_file(self.images[release], release)))
            (made / "DEBIAN").mkdir()
            control = f"Package: {package.name.replace('+', '-')}\nVersion: 1\nArchitecture: amd64\n"
            (made / "DEBIAN" / "control").write_text(control + "Maintainer: a <a@b.invalid>\nDescription: a\n")
            debs.append(where / f"{release}.deb")
            subprocess.run(["dpkg-deb", "-b", made, debs[-1]], check=True, capture_output=True)
        return debs


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this machine")
    sound, broken, bare = btf_blob(SOUND), btf_blob(BROKEN), btf_blob(SOUND, sched_ext=False)
    images = {"6.1.1": bare, "6.16.3": sound, "7.1.3": broken, "7.1.4": broken, "7.3.4": sound, "7.4.0": broken}
    return Archive(tmp_path / "apt", {f"{version}+deb13-cloud-amd64": blob for version, blob in images.items()})


@pytest.fixture
def kernels(archive: Archive, tmp_path: Path) -> KernelCatalog:
    return KernelCatalog(tmp_path / "kernels", archive)


def test_newest_oldest_and_series_pass_over_unusable_kernels(kernels: KernelCatalog, archive: Archive) -> None:
    assert kernels.resolve("newest").release == "7.3.4+deb13-cloud-amd64"
    assert kernels.resolve("oldest").release == "6.16.3+deb13-cloud-amd64"
    assert kernels.resolve("7").release == "7.3.4+deb13-cloud-amd64"
    seen = {k.release.partition("+")[0]: (k.cached, k.verdict and k.verdict.usable) for k in kernels.list()}
    assert seen["7.4.0"] == (True, False)
    assert seen["6.16.3"] == (True, True)
    assert seen["7.1.3"] == (False, None)


def test_kernel_is_fetched_and_checked_once_and_then_needs_no_network(kernels: KernelCatalog, archive: Archive) -> None:
    first = kernels.resolve("7.3")
    assert archive.fetched == ["7.3.4+deb13-cloud-amd64"]
    assert kernels.resolve("7.3.4") == first
    archive.reachable = False
    assert kernels.resolve("newest") == first
    assert archive.fetched == ["7.3.4+deb13-cloud-amd64"]
    assert first.vmlinux.read_bytes().startswith(b"\x7fELF")
    assert not list(first.vmlinux.parent.parent.glob(".new-*"))


def test_series_of_unusable_kernels_says_why_and_a_version_gives_one(
    kernels: KernelCatalog, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KernelNotFound, match=r"7\.1\.4\S+: 3 malformed kfuncs; 7\.1\.3") as raised:
        kernels.resolve("7.1")
    assert raised.value.hint
    image = kernels.resolve("7.1.3")
    assert (image.release, image.verdict.usable) == ("7.1.3+deb13-cloud-amd64", False)
    assert "3 malformed kfuncs" in capfd.readouterr().err


def test_unknown_kernel_names_the_spec_and_the_suites(kernels: KernelCatalog) -> None:
    with pytest.raises(KernelNotFound, match=r"'5\.4' on offer in trixie-backports, forky, sid") as raised:
        kernels.resolve("5.4")
    assert "newest" in str(raised.value.hint)


def test_kernel_by_path_is_checked_again_only_when_it_changes(kernels: KernelCatalog, tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bz_image(elf_file(btf_blob(SOUND), "7.9.9-mine")))
    image = kernels.resolve(str(path))
    assert (image.release, image.verdict.usable) == ("7.9.9-mine", True)
    stamp = image.vmlinux.stat().st_mtime_ns
    assert kernels.resolve(str(path)).vmlinux.stat().st_mtime_ns == stamp
    path.write_bytes(bz_image(elf_file(btf_blob(BROKEN), "7.9.10-mine")))
    again = kernels.resolve(str(path))
    assert (again.release, again.verdict.usable) == ("7.9.10-mine", False)


def test_path_that_is_no_kernel_is_refused(kernels: KernelCatalog, tmp_path: Path) -> None:
    with pytest.raises(KernelNotFound, match="absent: no such file"):
        kernels.resolve(str(tmp_path / "absent"))
    (tmp_path / "text").write_text("root")
    with pytest.raises(ImageError, match=f"{tmp_path}/text: not a kernel image"):
        kernels.resolve(str(tmp_path / "text"))
