# SPDX-License-Identifier: Apache-2.0
"""The file that names a tree of policies: what it means, and which key is named if it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from ghostbpf.schedulers import hierarchy
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.hierarchy import TreeConfig, TreeError
from ghostbpf.schedulers.registry import POLICIES

EXAMPLE = Path(__file__).parents[2] / "examples" / "co-location.toml"

LEAF = '[[child]]\npolicy = "biff"\n'
ROCI = 'arbiter = "roci"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tree.toml"


def read(file: Path, text: str) -> TreeConfig:
    file.write_text(text)
    return hierarchy.read(str(file), POLICIES)


def test_example_names_leaves_in_order_of_precedence() -> None:
    config = hierarchy.read(str(EXAMPLE), POLICIES)
    assert [[node.name for node in path] for path in config.root.paths()] == [
        ["latency"],
        ["batch", "build"],
        ["batch", "rest"],
    ]
    assert [node.name for node in config.root.walk()] == ["root", "latency", "batch", "build", "rest"]
    build = config.leaves[1]
    assert build.options is not None
    assert (build.options.policy, build.options.values["slice_ns"]) == (POLICIES["rr"], 20_000_000)
    assert (build.weight, config.leaves[2].weight, build.max_cpus, config.cpus) == (300, 100, 0, None)


def test_root_has_cpus_and_a_child_limits(file: Path) -> None:
    config = read(file, f'{ROCI}cpus = "2-3,5"\n{LEAF}max-cpus = 2\n')
    assert (config.cpus, config.leaves[0].max_cpus) == (CpuSet([2, 3, 5]), 2)
    assert config.leaves[0].name == "biff"


def test_child_prefers_cpus_and_limits_pokes(file: Path) -> None:
    config = read(file, f'{ROCI}cpus = "0-3"\n{LEAF}priority-cpus = "0,2"\npoke-threshold = "100us"\n')
    (leaf,) = config.leaves
    assert (leaf.priority_cpus, leaf.poke_threshold_ns) == (CpuSet([0, 2]), 100_000)
    (leaf,) = read(file, f"{ROCI}{LEAF}").leaves
    assert (leaf.priority_cpus, leaf.poke_threshold_ns) == (CpuSet(), 0)


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        (LEAF, "arbiter", "it is missing"),
        (f'arbiter = "flux"\n{LEAF}', "arbiter", 'no arbiter "flux"'),
        (ROCI, "child", "at least one child"),
        (f"{ROCI}child = 3", "child", "not an array of tables"),
        (f"{ROCI}cpu = 1\n{LEAF}", "cpu", "no such key"),
        (f'{ROCI}cpus = "3-1"\n{LEAF}', "cpus", "3-1"),
        (f"{ROCI}cpus = 3\n{LEAF}", "cpus", "not a list of CPUs"),
        (f'{ROCI}[[child]]\npolicy = "bif"', "child[0].policy", "no policy"),
        (f'{ROCI}{LEAF}arbiter = "prov"', "child[0]", "either a policy or an arbiter"),
        (f'{ROCI}[[child]]\nname = "x"', "child[0]", "either a policy or an arbiter"),
        (f'{ROCI}[[child]]\npolicy = "fifo_centralized"', "child[0].policy", "has an agent"),
        (f'{ROCI}{LEAF}options = {{ slice = "5" }}', "child[0].options.slice", "bad duration"),
        (f"{ROCI}{LEAF}options = {{ quantum = 5 }}", "child[0].options", "no option quantum"),
        (f"{ROCI}{LEAF}options = 5", "child[0].options", "not a table"),
        (f"{ROCI}{LEAF}weight = 0", "child[0].weight", "from 1 to 10000"),
        (f"{ROCI}{LEAF}max-cpus = true", "child[0].max-cpus", "not a number"),
        (f"{ROCI}{LEAF}priority-cpus = 3", "child[0].priority-cpus", "not a list of CPUs"),
        (f'{ROCI}{LEAF}priority-cpus = "2-"', "child[0].priority-cpus", "2-"),
        (f'{ROCI}cpus = "0-3"\n{LEAF}priority-cpus = "3-5"', "child[0].priority-cpus", "CPU 4-5 is not among"),
        (f"{ROCI}{LEAF}poke-threshold = 100", "child[0].poke-threshold", "bad duration"),
        (f'{ROCI}priority-cpus = "0"\n{LEAF}', "priority-cpus", "no such key"),
        (f"{ROCI}{LEAF}{LEAF}", "child", 'two children are named "biff"'),
        (f'{ROCI}[[child]]\npolicy = "idle"\n{LEAF}', "child[0].policy", "idle wants every CPU"),
        (f'{ROCI}[[child]]\npolicy = "idle"', "child[0].policy", "idle wants every CPU"),
        (
            f'{ROCI}[[child]]\narbiter = "prov"\n[[child.child]]\npolicy = "biff"\n[[child.child]]\npolicy = "idle"',
            "child[0].child[1].policy",
            "idle wants every CPU",
        ),
        (f'{ROCI}{LEAF}[[child.child]]\npolicy = "rr"', "child[0].child", "no children of its own"),
        (f'{ROCI}[[child]]\narbiter = "prov"\noptions = {{}}\n', "child[0].options", "has no options"),
        (f'{ROCI}{LEAF}name = "{"x" * 32}"', "child[0].name", "31 bytes"),
        (ROCI + "".join(f'{LEAF}name = "{n}"\n' for n in range(9)), "child", "more than 8 policies"),
        ("arbiter =", "", "Invalid value"),
    ],
)
def test_mistake_is_reported_with_its_key(file: Path, text: str, key: str, reason: str) -> None:
    with pytest.raises(TreeError) as error:
        read(file, text)
    assert (error.value.key, error.value.exit_status) == (key, 2)
    assert reason in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f'{ROCI}{LEAF}name = "a"\n{LEAF}name = "b"\nweight = 0', 8),
        (f'{ROCI}[[child]]\narbiter = "prov"\n[[child.child]]\npolicy = "rr"\n[[child.child]]\npolicy = "bif"', 7),
        (f'{ROCI}{LEAF}[child.options]\nslice = "5"', 5),
        (f'{ROCI}# two\nchild = [{{ policy = "rr" }}, {{ policy = "bif" }}]', 3),
        (f"{ROCI}{LEAF}options = {{ quantum = 5 }}", 4),
        (f'{ROCI}[[child]]\nname = "x"', 2),
        (f"{ROCI}{LEAF}cpu = 1", 4),
        (LEAF, 0),
    ],
)
def test_mistake_is_reported_with_its_line(file: Path, text: str, line: int) -> None:
    with pytest.raises(TreeError) as error:
        read(file, text)
    assert error.value.line == line
    assert str(error.value).startswith(f"{file}:{line}: " if line else f"{file}: ")


def test_tree_that_is_too_deep_is_refused(file: Path) -> None:
    text = ROCI
    for level in range(1, 4):
        text += f'[[{".".join(["child"] * level)}]]\nname = "{level}"\narbiter = "prov"\n'
    text += '[[child.child.child.child]]\npolicy = "biff"\n'
    with pytest.raises(TreeError, match="more than 3 levels"):
        read(file, text)


def test_missing_file_is_named(file: Path) -> None:
    with pytest.raises(TreeError, match=r"tree\.toml: No such file"):
        hierarchy.read(str(file), POLICIES)


@pytest.mark.parametrize("name", ["tree.toml", "./a.b/c.toml"])
def test_only_a_toml_file_is_a_tree(name: str) -> None:
    assert hierarchy.is_file(name)
    assert not hierarchy.is_file(name.removesuffix(".toml"))
