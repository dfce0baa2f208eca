# SPDX-License-Identifier: Apache-2.0
"""The two trees of a guest, made by mmdebstrap: its root file system, and the tools that run it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from .cache import locked, remove_unless_in_use, scratch_dir, stage, write_atomically
from .errors import ImageError
from .mirrors import Mirror

SUITE = "trixie"

ROOT_PACKAGES = (
    "python3",
    "python3-bpfcc",
    "libbpf1",
    "python3-cffi",
    "python3-click",
    "python3-tabulate",
    "python3-pyroute2",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-hypothesis",
    "python3-jsonschema",
    "python3-prometheus-client",
    "python3-textual",
    "bpftool",
    "bpfcc-tools",
    "linux-perf",
    "stress-ng",
    "rt-tests",
    "memcached",
    "util-linux",
    "mount",
    "procps",
    "iproute2",
    "strace",
    "tmux",
    "kmod",
)
TOOLS_PACKAGES = ("qemu-system-x86", "virtiofsd")

# Mount points, and the only writable directory; the rest of the root is read-only in the guest.
STATE = "var/lib/ghostbpf"
_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "opt/ghostbpf", "usr/lib/modules", "usr/src", STATE)

_COMMAND = """#!/bin/sh
exec python3 -m ghostbpf.tools.cli "$@"
"""

# man's own directories stay: update-alternatives of packages such as a JRE makes links there, and fails without them.
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)


@dataclass(frozen=True)
class Recipe:
    """How to make a tree; a changed recipe makes a new tree."""

    name: str
    variant: str
    packages: tuple[str, ...]
    directories: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    #: Patterns of files that dpkg does not unpack.
    excluded: tuple[str, ...] = field(default=_EXCLUDED, repr=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the recipe, in 12 hex digits."""
        return hashlib.sha256(repr((SUITE, self.excluded, self)).encode()).hexdigest()[:12]


GUEST_ROOT = Recipe("root", "essential", ROOT_PACKAGES, _DIRECTORIES, (("usr/local/bin/ghostbpf", _COMMAND),))
# Unpacked and not configured: only two of its programs run, by its own dynamic loader.
TOOLS_ROOT = Recipe("tools", "extract", TOOLS_PACKAGES)


def with_packages(packages: tuple[str, ...]) -> Recipe:
    """The recipe of a guest's root with additional `packages`; the cache has one such tree."""
    if not packages:
        return GUEST_ROOT
    return replace(GUEST_ROOT, name="extended", packages=(*GUEST_ROOT.packages, *packages))


def tree(home: Path, recipe: Recipe, mirror: Mirror) -> tuple[Path, Path]:
    """The tree of `recipe` under `home`, made if missing, and the lock to hold (shared) while using it.

    It is renamed into place when complete; then the trees of older recipes are removed. Raises ImageError.
    """
    place = home / f"{recipe.name}-{recipe.fingerprint}"
    lock = home / f"{place.name}.lock"
    if place.is_dir():
        return place, lock
    with locked(home / f"{recipe.name}.build.lock"):
        if place.is_dir():
            return place, lock
        with scratch_dir(home, recipe.name) as scratch:
            part = scratch / "tree"
            with stage(f"making the tree {recipe.name} from {len(recipe.packages)} {SUITE} packages"):
                _bootstrap(recipe, mirror, part)
            for name in recipe.directories:
                (part / name).mkdir(parents=True, exist_ok=True)
            for name, text in recipe.files:
                write_atomically(part / name, text.encode())
                (part / name).chmod(0o755)
            part.replace(place)
        for old in home.glob(f"{recipe.name}-*/"):
            if old != place:
                remove_unless_in_use(old, home / f"{old.name}.lock")
    return place, lock


def _bootstrap(recipe: Recipe, mirror: Mirror, target: Path) -> None:
    argv = [
        # mmdebstrap mounts file systems in the tree. In its own namespaces, its mounts and children end with it, and it
        # ends with this process, even if either is killed.
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--"),
        "mmdebstrap",
        f"--variant={recipe.variant}",
        f"--include={','.join(recipe.packages)}",
        "--architectures=amd64",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded),
        SUITE,
        str(target),
        mirror.source(SUITE),
    ]
    if shutil.which("mmdebstrap") is None:
        raise ImageError("mmdebstrap is not installed", "apt install mmdebstrap")
    lines: list[str] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            _show(line.strip())
    if process.returncode:
        tail = [line for line in lines if not re.match(r"\S+ +\d+%|done$", line)][-6:]
        raise ImageError(
            f"mmdebstrap failed with status {process.returncode}: " + "; ".join(tail),
            f"name another archive with --mirror if {mirror.uri} is unreachable or has no {SUITE}",
        )


def _show(line: str) -> None:
    # mmdebstrap's "I:" lines are its stages; the rest is progress bars.
    if line.startswith("I: ") and sys.stderr.isatty():
        print(f"  {line[3:]}", file=sys.stderr, flush=True)
