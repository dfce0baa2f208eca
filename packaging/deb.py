# SPDX-License-Identifier: Apache-2.0
"""Build the Debian package in a Debian root, or install a package in such a root and run a command there.

    python packaging/deb.py build DIRECTORY       build, run lintian, and write the .deb to DIRECTORY
    python packaging/deb.py try FILE.deb CMD...   install FILE.deb and run CMD

mmdebstrap creates the root once, from the suite that guests run; it is cached beside the roots of ``ghostbpf vm``. Each
command runs in an overlay in memory, without network. A build on the host would depend on the host's packages: Debian
12 has setuptools 66, and pyproject.toml requires 77.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ghostbpf.vm.cache import cache_dir, locked
from ghostbpf.vm.errors import BadRequest, VmError
from ghostbpf.vm.images import Recipe, tree
from ghostbpf.vm.mirrors import find_mirror

CHECKOUT = Path(__file__).resolve().parents[1]

#: Packages that check the result; neither the build nor the package depends on them.
_CHECKERS = ("lintian", "mandoc", "fish", "zsh")

# Arguments: an empty directory, the root, the directory to mount on /mnt, and the command.
_ENTER = """
scratch=$1 lower=$2 shared=$3 && shift 3 &&
mount -t tmpfs overlay "$scratch" && cd "$scratch" && mkdir upper work root &&
mount -t overlay -o "lowerdir=$lower,upperdir=upper,workdir=work" overlay root &&
mount --bind "$shared" root/mnt && mount --rbind /dev root/dev && mount -t proc proc root/proc &&
exec chroot root "$@"
"""

# /mnt/tree is a copy of the checkout. dpkg-buildpackage writes its results to the parent of the directory it builds.
_BUILD = """
set -eu
cp -r /mnt/tree /root/ghostbpf && cd /root/ghostbpf && cp -r packaging/debian debian
# The built-in build dependencies are a C compiler and its libraries: an architecture-independent package needs none.
dpkg-buildpackage --unsigned-source --unsigned-changes --ignore-builtin-builddeps
cp ../*.deb /mnt
lintian --allow-root --fail-on error ../*.changes
"""

_TRY = """
set -eu
dpkg --install /mnt/package.deb >/mnt/log 2>&1 || { cat /mnt/log >&2; exit 1; }
exec "$@"
"""


def _packages() -> Iterator[str]:
    """Yield the packages in Build-Depends and Depends of debian/control, and the checkers."""
    control = (CHECKOUT / "packaging" / "debian" / "control").read_text()
    for field in re.findall(r"^(?:Build-)?Depends:((?:\n .+)+)", control, re.MULTILINE):
        yield from re.findall(r"^ ([a-z][\w+.-]+)", field, re.MULTILINE)
    yield from _CHECKERS


def _in_root(shared: Path, *command: str) -> int:
    """Run `command` in an overlay of the root, with `shared` mounted on /mnt, and return its exit status."""
    # A guest's root has no man pages and no lintian data. man and lintian need them.
    recipe = Recipe("packaging", "essential", tuple(sorted(set(_packages()))), excluded=())
    root, lock = tree(cache_dir(), recipe, find_mirror())
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as scratch, locked(lock, shared=True):
        isolated = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--"]
        argv = [*isolated, "sh", "-c", _ENTER, "sh", scratch, str(root), str(shared), *command]
        return subprocess.run(argv, env=environment).returncode


def build(directory: Path) -> int:
    """Build the package and copy it to `directory`; return 0 or the status of the step that failed."""
    with tempfile.TemporaryDirectory() as shared:
        _copy_checkout(Path(shared) / "tree")
        status = _in_root(Path(shared), "sh", "-c", _BUILD)
        directory.mkdir(parents=True, exist_ok=True)
        for deb in Path(shared).glob("*.deb"):
            (directory / deb.name).write_bytes(deb.read_bytes())
            print(directory / deb.name)
    return status


def _copy_checkout(target: Path) -> None:
    """Copy the files that git tracks, and untracked ones that it does not ignore."""
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, text=True)
    for name in filter(None, names.split("\0")):
        if (source := CHECKOUT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
            (target / name).chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def try_out(deb: Path, command: list[str]) -> int:
    """Install `deb` in a root that has its dependencies, run `command` there and return its exit status."""
    with tempfile.TemporaryDirectory() as shared:
        Path(shared, "package.deb").write_bytes(deb.read_bytes())
        return _in_root(Path(shared), "sh", "-c", _TRY, "sh", *command)


def main(arguments: list[str]) -> int:
    """Run one of the two commands of the module's docstring and return its exit status."""
    try:
        if os.geteuid() != 0:
            raise BadRequest("mounting the Debian root needs root", "sudo")
        match arguments:
            case ["build", directory]:
                return build(Path(directory))
            case ["try", deb, *command] if command:
                return try_out(Path(deb), command)
    except VmError as error:
        print(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_status
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
