# SPDX-License-Identifier: Apache-2.0
"""The guest's cached trees: made once, replaced when their recipe changes, and not removed while in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from ghostbpf.vm import ImageError
from ghostbpf.vm.cache import cache_dir, locked, remove_unless_in_use, write_atomically
from ghostbpf.vm.images import GUEST_ROOT, Recipe, tree, with_packages
from ghostbpf.vm.mirrors import Mirror


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
