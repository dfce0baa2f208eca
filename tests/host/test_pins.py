# SPDX-License-Identifier: Apache-2.0
"""bpffs that is open to all users: another user can neither hold the lock nor make the directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers import pins

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting bpffs needs root")
NOBODY = 65534


@pytest.fixture
def bpffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bpffs of the test's own, with the kernel's default mode."""
    tmp_path.chmod(0o755)
    place = Path(os.path.realpath(f"/run/ghostbpf-test-{os.getpid()}"))
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    for name in ("BPFFS", "ROOT", "CORE", "LOCK"):
        path = getattr(pins, name)
        monkeypatch.setattr(pins, name, place / path.relative_to("/sys/fs/bpf"))
    yield place
    subprocess.run(["umount", "-l", place], check=True)
    place.rmdir()


def as_nobody(body: str) -> int:
    """Run shell code as an ordinary user; returns its exit status."""
    command = ["sh", "-c", body]
    done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], stderr=subprocess.DEVNULL, check=False)
    return done.returncode


@contextlib.contextmanager
def held_by_nobody(path: Path) -> Iterator[bool]:
    """An ordinary user tries to lock ``path`` for the block; the value is whether that worked."""
    holder = subprocess.Popen(
        ["flock", "-n", str(path), "sh", "-c", "echo held; read wait"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    yield holder.stdout.readline() == b"held\n"
    with contextlib.suppress(BrokenPipeError):
        holder.stdin.close()
    holder.wait()
    holder.stdout.close()


def is_locked(path: Path) -> bool:
    """Whether another open file of ``path`` holds its lock."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_user_who_locks_public_bpffs_does_not_stop_changes(bpffs: Path) -> None:
    assert bpffs.stat().st_mode & 0o077
    with held_by_nobody(bpffs) as held:
        assert held
        with pins.locked():
            assert is_locked(pins.LOCK)
            with held_by_nobody(pins.LOCK) as held_too:
                assert not held_too
    with held_by_nobody(pins.LOCK) as held:
        assert not held
    assert not is_locked(pins.LOCK)


def test_private_bpffs_is_locked_itself(bpffs: Path) -> None:
    bpffs.chmod(0o700)
    with pins.locked():
        assert is_locked(bpffs)
        assert not pins.LOCK.exists()


def test_bpffs_that_a_change_mounts_is_closed_to_other_users(bpffs: Path) -> None:
    subprocess.run(["umount", bpffs], check=True)
    with pins.locked():
        assert os.path.ismount(bpffs)
        assert as_nobody(f"ls {bpffs}") != 0
    assert bpffs.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["LOCK", "ROOT"])
def test_directory_that_another_user_made_is_refused(bpffs: Path, name: str) -> None:
    path = getattr(pins, name)
    assert as_nobody(f"mkdir {path}") == 0
    use = pins.locked().__enter__ if name == "LOCK" else lambda: pins.make_private(pins.CORE)
    with pytest.raises(GhostError, match=f"{path} was made by user {NOBODY}, and is not used") as error:
        use()
    assert error.value.hint == f"sudo rm -r {path}; then, against it: sudo chmod 700 {bpffs}"
    assert not (path / "core").exists()


def test_pins_are_private_to_their_maker(bpffs: Path) -> None:
    pins.make_private(pins.CORE)
    assert as_nobody(f"ls {pins.ROOT}") != 0
    assert as_nobody(f"rmdir {pins.CORE} || mv {pins.ROOT} {bpffs}/mine") != 0
    pins.check_owner(pins.CORE)
