# SPDX-License-Identifier: Apache-2.0
"""Package lists, mirrors and archives that a guest's kernel and root come from; those used here are made here."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ghostbpf.vm import BadRequest, ImageError
from ghostbpf.vm.kernels import header_packages, matching, on_offer
from ghostbpf.vm.mirrors import Mirror, find_mirror
from ghostbpf.vm.packages import Apt, Package, parse_packages

PACKAGES = """\
Package: linux-image-6.16.3+deb13-cloud-amd64
Version: 6.16.3-1~bpo13+1
Depends: kmod

Package: linux-image-6.16.12+deb13-cloud-amd64
Version: 6.16.12-1~bpo13+1

Package: linux-image-6.16.12+deb13-amd64
Version: 6.16.12-1~bpo13+1
Description: not the cloud flavour

Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)

Package: linux-binary-7.3.4+deb13-cloud-amd64
Source: linux-signed-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-binary-unsigned-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-image-7.3.4+deb13-cloud-amd64-dbg
Version: 7.3.4-1~bpo13+1

Package: linux-binary-7.2.12+deb13-cloud-amd64
Version: 7.2.12-1~bpo13+1

Package: linux-binary-7.2.12+deb14-cloud-amd64
Version: 7.2.12-1

Package: linux-headers-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: gcc-14-for-host, linux-headers-7.3.4+deb13-common (= 7.3.4-1~bpo13+1), linux-kbuild-7.3.4+deb13

Package: linux-headers-7.3.4+deb13-common
Version: 7.3.4-1~bpo13+1

Package: linux-kbuild-7.3.4+deb13
Version: 7.3.4-1~bpo13+1
"""

ON_OFFER = [
    "6.16.3+deb13-cloud-amd64",
    "6.16.12+deb13-cloud-amd64",
    "7.2.12+deb13-cloud-amd64",
    "7.2.12+deb14-cloud-amd64",
    "7.3.4+deb13-cloud-amd64",
]


# Package lists


def test_package_list_of_all_shapes_gives_each_cloud_kernel_once_in_numeric_order() -> None:
    kernels = on_offer(parse_packages(PACKAGES, "sid"))
    assert [k.release for k in kernels] == ON_OFFER
    names = [k.package.name for k in kernels if k.package]
    assert names[0].startswith("linux-image-6.16.3")
    assert names[-1] == "linux-binary-7.3.4+deb13-cloud-amd64", "from 6.19 on the image package is empty"


@pytest.mark.parametrize(
    ("spec", "best", "count"),
    [
        ("newest", "7.3.4+deb13", 5),
        ("oldest", "6.16.3+deb13", 5),
        ("6.16", "6.16.12+deb13", 2),
        ("7", "7.3.4+deb13", 3),
        ("7.2.12", "7.2.12+deb14", 2),
        ("6.16.3+deb13-cloud-amd64", "6.16.3+deb13", 1),
        ("7.2.12+deb13", "7.2.12+deb13", 1),
    ],
)
def test_spec_prefers(spec: str, best: str, count: int) -> None:
    found = matching(spec, on_offer(parse_packages(PACKAGES, "sid")))
    assert found[0].release == f"{best}-cloud-amd64"
    assert len(found) == count


@pytest.mark.parametrize("spec", ["6.1", "7.3.40", "latest", "", "7.", "7.3.4+deb1"])
def test_spec_that_is_no_version_on_offer_matches_nothing(spec: str) -> None:
    assert matching(spec, on_offer(parse_packages(PACKAGES, "sid"))) == []


def test_headers_are_the_package_and_its_two_parts() -> None:
    packages = list(parse_packages(PACKAGES, "sid"))
    found = [p.name for p in header_packages("7.3.4+deb13-cloud-amd64", packages)]
    assert found == [
        "linux-headers-7.3.4+deb13-cloud-amd64",
        "linux-headers-7.3.4+deb13-common",
        "linux-kbuild-7.3.4+deb13",
    ]


def test_headers_no_longer_on_offer_name_the_kernels_that_have_them() -> None:
    with pytest.raises(ImageError, match=re.escape("6.16.3+deb13-cloud-amd64 are not")) as raised:
        header_packages("6.16.3+deb13-cloud-amd64", list(parse_packages(PACKAGES, "sid")))
    assert raised.value.hint == "one of 7.3.4+deb13-cloud-amd64"


# Mirrors


@pytest.fixture
def no_mirror_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTBPF_MIRROR", raising=False)


def test_mirror_of_one_line_format(tmp_path: Path, no_mirror_variable: None) -> None:
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.invalid/debian bookworm main\n"
        "deb cdrom:[Debian]/ bookworm main\n"
        "deb-src http://source.invalid/debian bookworm main\n"
        "deb http://security.invalid/debian-security bookworm-security main\n"
        "deb [ arch=amd64 signed-by=/k.gpg ] http://right.invalid/debian/ bookworm main # why\n"
    )
    assert find_mirror(etc=tmp_path) == Mirror("http://right.invalid/debian", "/k.gpg")


def test_mirror_of_deb822_format(tmp_path: Path, no_mirror_variable: None) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.sources.disabled").write_text(
        "Types: deb\nURIs: http://no.invalid\nSuites: sid\n"
    )
    (tmp_path / "sources.list.d" / "b.sources").write_text(
        "Types: deb\nURIs: http://off.invalid/debian\nSuites: trixie\nEnabled: no\n\n"
        "Types: deb\nURIs: http://other.invalid/node\nSuites: nodistro\nComponents: main\n\n"
        "Types: deb deb-src\n# a comment\nURIs: http://right.invalid/debian\n"
        "Suites: trixie\n trixie-updates\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n"
    )
    assert find_mirror(etc=tmp_path) == Mirror("http://right.invalid/debian", None)


def test_mirror_by_option_wins_over_variable_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources.list").write_text("deb http://etc.invalid/debian sid main\n")
    monkeypatch.setenv("GHOSTBPF_MIRROR", "http://variable.invalid/debian")
    assert find_mirror(etc=tmp_path).uri == "http://variable.invalid/debian"
    assert find_mirror("file:/srv/debian/", etc=tmp_path).uri == "file:/srv/debian"


def test_mirror_missing_or_malformed(tmp_path: Path, no_mirror_variable: None) -> None:
    with pytest.raises(ImageError, match="no Debian archive") as raised:
        find_mirror(etc=tmp_path)
    assert raised.value.hint
    assert "--mirror" in raised.value.hint
    with pytest.raises(BadRequest, match="'nonsense' is not a URI"):
        find_mirror("nonsense", etc=tmp_path)


class Lists(Apt):
    """An apt that only counts its accesses to the network."""

    refreshes = 0
    reachable = True

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        self.refreshes += command[0] == "update"
        if not self.reachable:
            raise ImageError("no network")
        return "" if command[0] == "update" else f"sid {self.home / 'Packages'}\n"


def test_package_lists_are_fetched_once_a_day_and_outlive_the_network(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/usr/lib/apt/apt-helper").exists():
        pytest.skip("no apt on this machine")
    apt = Lists(tmp_path, Mirror("http://archive.invalid/debian"))
    (tmp_path / "Packages").write_text(PACKAGES)
    first = apt.packages()
    assert {p.suite for p in first} == {"sid"}
    assert (apt.packages(), apt.refreshes) == (first, 1)
    assert (apt.packages(max_age=0), apt.refreshes) == (first, 2)
    apt.reachable = False
    assert apt.packages(refresh=True) == first
    assert "warning: no network" in capfd.readouterr().err
    other = Lists(tmp_path, Mirror("http://other.invalid/debian"))
    other.reachable = False
    with pytest.raises(ImageError, match="no network"):
        other.packages()


class Local(Mirror):
    """A directory as an archive that apt trusts."""

    def source(self, suite: str) -> str:
        return f"deb [trusted=yes] {self.uri} {suite} main"


class Archive:
    """An archive of one build of one kernel package."""

    NAME = "linux-image-9.9.9-cloud-amd64"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "dists/sid/main/binary-amd64/Packages"
        self.index.parent.mkdir(parents=True)

    def offer(self, version: str) -> None:
        """Replace the build in the archive."""
        for deb in self.root.glob("*.deb"):
            deb.unlink()
        control = f"Package: {self.NAME}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
        tree = self.root / "tree"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN/control").write_text(control)
        deb = self.root / f"{self.NAME}_{version}.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, stdout=subprocess.DEVNULL)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.index.write_text(f"{control}Filename: {deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
        listed = f"{hashlib.sha256(self.index.read_bytes()).hexdigest()} {self.index.stat().st_size}"
        release = (
            f"Codename: sid\nArchitectures: amd64\nComponents: main\nSHA256:\n {listed} main/binary-amd64/Packages\n"
        )
        (self.root / "dists/sid/Release").write_text(release)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    if not Path("/usr/lib/apt/apt-helper").exists():
        pytest.skip("no apt on this machine")
    return Archive(tmp_path / "archive")


@pytest.mark.parametrize("change", ["a later build", "no lists"])
def test_package_that_the_lists_lack_is_found_in_new_lists(archive: Archive, tmp_path: Path, change: str) -> None:
    archive.offer("1")
    apt = Apt(tmp_path / "apt", Local(f"file:{archive.root}"), ["sid"])
    [package] = apt.packages()
    if change == "no lists":
        shutil.rmtree(tmp_path / "apt/lists")
    else:
        archive.offer("2")
    [deb] = apt.download([package], tmp_path)
    assert deb.name == f"{archive.NAME}_{1 if change == 'no lists' else 2}_amd64.deb"
    with pytest.raises(ImageError, match="Unable to locate package linux-image-1-cloud-amd64"):
        apt.download([Package("linux-image-1-cloud-amd64", "1", "sid")], tmp_path)
