# SPDX-License-Identifier: Apache-2.0
"""The host side of a guest: package lists, mirrors, kernel images, the cache, and refused input. No guest boots."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ghostbpf.tools.vm_command import command
from ghostbpf.vm import (
    BadRequest,
    Guest,
    GuestError,
    GuestLost,
    GuestOops,
    GuestTimeout,
    ImageError,
    VmError,
    parse_memory,
)
from ghostbpf.vm import guest as guest_module
from ghostbpf.vm.accel import choose
from ghostbpf.vm.cache import cache_dir, locked, remove_unless_in_use, write_atomically
from ghostbpf.vm.images import GUEST_ROOT, Recipe, tree, with_packages
from ghostbpf.vm.kernels import header_packages, matching, on_offer
from ghostbpf.vm.machine import Machine, Tools, qemu_argv
from ghostbpf.vm.mirrors import Mirror, find_mirror
from ghostbpf.vm.packages import Apt, Package, parse_packages
from ghostbpf.vm.request import check, shared_directory
from ghostbpf.vm.session import Session

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


# The cache


def test_cache_directory_follows_xdg_and_ignores_a_relative_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ghostbpf" / "vm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "ghostbpf" / "vm"


def test_tree_is_keyed_by_its_recipe() -> None:
    same = Recipe(*(getattr(GUEST_ROOT, name) for name in GUEST_ROOT.__dataclass_fields__))
    assert same.fingerprint == GUEST_ROOT.fingerprint
    more = Recipe("root", "essential", (*GUEST_ROOT.packages, "gcc"), GUEST_ROOT.directories, GUEST_ROOT.files)
    assert more.fingerprint != GUEST_ROOT.fingerprint


def test_root_with_more_packages_does_not_replace_every_guests() -> None:
    assert with_packages(()) is GUEST_ROOT
    extended = with_packages(("gcc",))
    assert extended.packages == (*GUEST_ROOT.packages, "gcc")
    assert extended.files == GUEST_ROOT.files
    # tree() removes only names that match NAME-*.
    assert not extended.name.startswith(GUEST_ROOT.name)


FAKE_MMDEBSTRAP = """#!/bin/sh
for word; do case $word in */.new-*) target=$word;; esac; done
mkdir "$target" && touch "$target/made" && echo x >>"$(dirname "$0")/log"
[ ! -e "$(dirname "$0")/broken" ] || { echo 'E: no such suite' >&2; exit 3; }
"""


def test_tree_is_made_once_whole_or_not_at_all_and_replaces_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "mmdebstrap"
    write_atomically(tool, FAKE_MMDEBSTRAP.encode())
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    home, mirror = tmp_path / "cache", Mirror("http://archive.invalid/debian")
    home.mkdir()
    recipe = Recipe("root", "essential", ("a",), ("var/lib/x",), (("usr/bin/hello", "#!/bin/sh\n"),))
    (tool.parent / "broken").touch()
    with pytest.raises(ImageError, match="status 3: E: no such suite"):
        tree(home, recipe, mirror)
    assert not list(home.glob("*root-*/"))
    (tool.parent / "broken").unlink()
    place, lock = tree(home, recipe, mirror)
    assert (place / "made").exists()
    assert (place / "var/lib/x").is_dir()
    assert (place / "usr/bin/hello").stat().st_mode & 0o111
    assert tree(home, recipe, mirror) == (place, lock)
    assert (tool.parent / "log").read_text().count("x") == 2
    newer, _ = tree(home, Recipe("root", "essential", ("a", "b")), mirror)
    assert list(home.glob("root-*/")) == [newer]


def test_tree_in_use_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with locked(tmp_path / "lock", shared=True):
        remove_unless_in_use(tmp_path / "tree", tmp_path / "lock")
        assert (tmp_path / "tree").exists()
    remove_unless_in_use(tmp_path / "tree", tmp_path / "lock")
    assert not (tmp_path / "tree").exists()


def test_kvm_is_tried_once_and_the_answer_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostbpf.vm.accel.KVM", tmp_path)
    tries: list[int] = []

    def trial() -> int:
        tries.append(1)
        raise GuestTimeout("never came up")

    memory = tmp_path / "accel.json"
    assert choose("auto", memory, "10.0", trial) == "tcg"
    assert choose("auto", memory, "10.0", trial) == "tcg"
    assert len(tries) == 1
    assert choose("auto", memory, "10.1", lambda: 0) == "kvm", "another QEMU is tried again"
    assert choose("tcg", memory, "10.1", trial) == "tcg"


# The machine


def qemu_words(**machine: Any) -> str:
    """The command line of a machine as one string."""
    tools = Tools(("qemu",), ("virtiofsd",), "10.0")
    made = Machine(Path("vmlinux"), cpus=4, memory=1024, **machine)
    return " ".join(qemu_argv(tools, made, console=3, io=4, control=5, shares=[("root", 6)]))


def test_exact_machine_counts_instructions_on_all_its_cpus() -> None:
    words = qemu_words(accel="tcg", exact=True)
    assert "-accel tcg,thread=single" in words
    assert "-icount shift=0,sleep=off" in words
    assert "-smp 4" in words
    assert "-icount" not in qemu_words(accel="tcg") + qemu_words(accel="kvm")


@pytest.mark.parametrize(("accel", "word"), [("tcg", "init_on_alloc=1"), ("kvm", "init_on_alloc=0")])
def test_emulated_guest_zeroes_each_page_before_a_file_is_read_into_it(accel: str, word: str) -> None:
    assert [w for w in qemu_words(accel=accel).split() if w.startswith("init_on_alloc=")] == [word]


# Refused input, and the messages of errors


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("2G", 2048), ("512M", 512), ("768", 768), ("1gib", 1024), ("3GB", 3072)]
)
def test_memory_sizes(text: str, mebibytes: int) -> None:
    assert parse_memory(text) == mebibytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "2T", "2 G", "1e3"])
def test_memory_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(repr(text))):
        parse_memory(text)


@pytest.mark.parametrize(
    ("guest", "complaint"),
    [
        (Guest(cpus=0), "cannot have 0 CPUs"),
        (Guest(cpus=10_000), "10000 CPUs"),
        (Guest(memory=8), "8M of memory"),
        (Guest(memory=1 << 30), "1073741824M of memory"),
        (Guest(accel="xen"), "unknown accelerator 'xen'"),
        (Guest(accel="kvm", exact=True), "KVM cannot count instructions"),
        (Guest(append="quiet -- sh"), "is not valid on a kernel command line"),
        (Guest(append="a\nb"), "is not valid on a kernel command line"),
        (Guest(environment={"A": "b\0c"}), "NUL"),
    ],
)
def test_invalid_guest_is_refused(guest: Guest, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        check(["true"], guest, None)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(BadRequest, match="time-out"):
        check(["true"], Guest(), timeout)


@pytest.mark.parametrize("path", ["/", "/usr", "/proc", "/nowhere-at-all"])
def test_directory_that_cannot_be_shared_is_refused(path: str) -> None:
    with pytest.raises(BadRequest, match=path):
        shared_directory(Path(path))


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--cpus", "0", "--", "true"], 2, "0 CPUs"),
        (["--memory", "lots", "--", "true"], 2, "'lots' is not a size"),
        (["--kernel", "/nowhere/vmlinuz", "--", "true"], 1, "/nowhere/vmlinuz"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--json", "--", "true"], 2, "--json needs --list"),
    ],
)
def test_command_refuses(arguments: list[str], status: int, complaint: str, root: None) -> None:
    result = CliRunner().invoke(command, arguments)
    error = result.exception
    assert complaint in result.output + str(error)
    assert (error.exit_status if isinstance(error, VmError) else result.exit_code) == status


def test_guest_errors_have_status_hint_and_the_end_of_the_console() -> None:
    console = "".join(f"line {n}\n" for n in range(100))
    for kind, status in ((GuestTimeout, 124), (GuestOops, 125), (GuestLost, 128)):
        error = kind("it went wrong", "this", console)
        assert (error.exit_status, error.hint) == (status, "this")
        lines = str(error).splitlines()
        assert lines[0] == "it went wrong"
        assert lines[-1].endswith("line 99")
        assert len(lines) == 22
    assert VmError("x").exit_status == ImageError("x").exit_status == 1
    assert BadRequest("x").exit_status == 2
    # Guests that never come up must not be retried for ever.
    assert [kind("x", emulation=True).exit_status for kind in (GuestOops, GuestLost)] == [123, 128]


_INT3 = """\
[   41.3] Oops: int3: 0000 [#1] SMP PTI
[   41.3] CPU: 2 UID: 0 PID: 312 Comm: python3 Not tainted 7.3.4+deb13-cloud-amd64
[   41.3] RIP: 0010:scx_enqueue+0x1/0x90
[   41.3] Code: 90 90 90 90 90 90 {before} <44> 00 00 41 57 41 56
[   41.4] Kernel panic - not syncing: Fatal exception
"""
_STALE, _REAL = _INT3.format(before="0f 1f"), _INT3.format(before="cc cc")
_TIMER = "[   90.1] rcu: rcu_preempt kthread timer wakeup didn't happen for 75000 jiffies!\n[   91.0] Kernel panic\n"


@pytest.mark.parametrize(
    ("console", "machine", "status"),
    [
        (_STALE, {"accel": "tcg"}, 123),
        (_STALE, {"accel": "kvm"}, 125),
        (_STALE, {"accel": "tcg", "exact": True}, 125),
        (_REAL, {"accel": "tcg"}, 125),
        (_TIMER, {"accel": "tcg"}, 123),
        (_TIMER, {"accel": "kvm"}, 125),
    ],
)
def test_kernel_death_is_excused_only_where_qemu_can_have_caused_it(
    console: str, machine: dict[str, Any], status: int
) -> None:
    session = Session(
        Tools(("qemu",), ("virtiofsd",), "10.0"),
        Machine(Path("vmlinux"), cpus=4, memory=1024, **machine),
        shares=[],
        setup=[],
        stdin=None,
        stdout=bytes,
        stderr=bytes,
    )
    session._console += console.encode()
    with pytest.raises(GuestOops, match="int3" if "int3" in console else "timer wakeup") as raised:
        session._outcome(True, None, "")
    assert raised.value.exit_status == status
    assert (raised.value.hint is not None) == (status == 123)


class FakeSession:
    console = "console"

    def __init__(self, error: GuestError | None, begun: bool) -> None:
        self.error, self.begun = error, begun

    def run(self, timeout: float | None) -> int:
        if self.error:
            raise self.error
        return 7


@pytest.mark.parametrize(
    ("emulation", "begun", "outcome"),
    [
        (True, False, nullcontext()),
        (True, True, pytest.raises(GuestError)),
        (False, False, pytest.raises(GuestError)),
    ],
)
@pytest.mark.parametrize("kind", [GuestOops, GuestLost])
def test_guest_that_qemu_broke_is_started_again_unless_the_command_had_begun(
    kind: type[GuestError], emulation: bool, begun: bool, outcome: AbstractContextManager[object]
) -> None:
    sessions = iter([FakeSession(kind("died", emulation=emulation), begun), FakeSession(None, True)])
    boot: Callable[..., tuple[int, str]] = guest_module._boot
    with outcome:
        assert boot(lambda: next(sessions), None) == (7, "console")


def test_full_disk_is_a_vm_error_and_a_closed_pipe_a_broken_pipe_error() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(VmError, match="no space left"):
        guest_module.write_all(full.fileno(), b"x")
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        guest_module.write_all(write, b"x")
    os.close(write)
