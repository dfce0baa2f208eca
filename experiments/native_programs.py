# SPDX-License-Identifier: Apache-2.0
"""Programs in C that belong to experiments: compiled beside their source by `make setup`, or else into the cache."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..loaders import cache
from ..loaders.errors import GhostError

_FLAGS = ("-O2", "-pthread")
_SHARED = ("-shared", "-fPIC")


def find(name: str, package: str) -> str:
    """The path of program ``name``; raises GhostError with the Debian ``package`` that has it."""
    if (path := shutil.which(name)) is None:
        raise GhostError(f"{name} is missing", hint=f"apt install {package}")
    return path


@dataclass(frozen=True)
class Program:
    """``name``, made of ``sources``, which are in one directory, and of ``headers``, linked to ``libraries``.

    Linked statically, it needs ``static_libraries`` too. ``needs`` is a file, and the Debian package that has it. One
    that ``is_preloaded`` is a shared object, which needs nothing but the C library.
    """

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    libraries: tuple[str, ...] = ()
    static_libraries: tuple[str, ...] = ()
    needs: tuple[Path, str] | None = None
    is_preloaded: bool = False

    def path(self) -> Path:
        """The program; it is compiled if there is none of these sources. Raises GhostError."""
        for path in (self._beside(), cache.directory() / "programs" / self._file_name()):
            if self._is_usable(path):
                return path
        self._compile(path)
        return path

    def set_up(self) -> Path:
        """Compile it beside its source, in place of earlier ones. Raises GhostError.

        Linked statically, it also runs in a guest, which has no compiler, fewer libraries and an older C library.
        """
        for old in self.sources[0].parent.glob(f"{self.name}-*"):
            old.unlink()
        self._compile(self._beside(), *(() if self.is_preloaded else ("-static", *self.static_libraries)))
        return self._beside()

    def _beside(self) -> Path:
        return self.sources[0].parent / self._file_name()

    def _file_name(self) -> str:
        """Its file's name, with a hash of all that it is made of."""
        texts = (path.read_text(encoding="utf-8") for path in (*self.sources, *self.headers))
        return f"{self.name}-{cache.key(*texts, *_FLAGS, *self.libraries, *self.static_libraries, os.uname().machine)}"

    def _is_usable(self, path: Path) -> bool:
        """Whether it is there, and no user but its owner and root could have written it."""
        try:
            status = path.stat()
        except OSError:
            return False
        is_safe = (
            status.st_uid in (0, os.geteuid(), self.sources[0].stat().st_uid) and not status.st_mode & stat.S_IWOTH
        )
        return is_safe and os.access(path, os.X_OK)

    def _compile(self, path: Path, *flags: str) -> None:
        if self.needs is not None and not self.needs[0].exists():
            raise GhostError(
                f"{self.name} cannot be compiled without {self.needs[0]}", hint=f"apt install {self.needs[1]}"
            )
        compiler = find("cc", "gcc")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=path.parent) as directory:
                target = Path(directory, path.name)
                command = [
                    compiler,
                    *_FLAGS,
                    *(_SHARED if self.is_preloaded else ()),
                    "-o",
                    str(target),
                    *map(str, self.sources),
                ]
                command += [*self.libraries, *flags]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise GhostError(
                        f"{' '.join(command)} fails: {done.stderr.strip()}", hint="apt install gcc libc6-dev"
                    )
                target.replace(path)
        except OSError as error:
            raise GhostError(f"cannot compile {self.name} into {path.parent}: {error.strerror}") from None
