# SPDX-License-Identifier: Apache-2.0
"""The file of ``ghostbpf apply``: what it means, which line is named if it is wrong, and what differs from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.errors import EnclaveBusy
from ghostbpf.schedulers.lending import Lending
from ghostbpf.tools.service import plan
from ghostbpf.tools.service.applied import Applied
from ghostbpf.tools.service.config import Config, ConfigError, Join, read
from ghostbpf.tools.service.plan import Change, Live, resize_steps
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "service.toml"

ONE = '[enclave.1]\ncpus = "0-1"\npolicy = "biff"\n'
TWO = ONE + '[enclave.2]\ncpus = "2"\npolicy = "rr"\n'
PROFILE = '[[profile]]\nname = "busy"\nwhen = { load-above = 0.8 }\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "enclaves.toml"


def parse(file: Path, text: str) -> Config:
    file.write_text(text)
    return read(str(file))


def test_example_has_enclaves_rules_and_profiles_in_order() -> None:
    config = read(str(EXAMPLE))
    assert {id: (one.shown, str(one.cpus)) for id, one in config.enclaves.items()} == {
        1: ("biff slice=5ms", "2-3"),
        2: ("rr", "4-7"),
    }
    assert config.enclaves[1].joins == (
        Join(comms=("nginx*", "redis-server")),
        Join(cgroups=("system.slice/postgresql.service",)),
    )
    assert config.enclaves[2].joins == (Join(cgroups=("batch.slice",), uids=frozenset({0})),)
    assert [(profile.name, profile.when.for_s) for profile in config.profiles] == [("encoder", 2.0), ("busy", 30.0)]
    encoder = config.under("encoder")
    assert (encoder[1].shown, str(encoder[1].cpus), encoder[2].shown) == ("fifo_centralized", "2-6", "rr")
    assert config.under(None) == config.enclaves
    with pytest.raises(GhostError, match='no profile "quiet"'):
        config.under("quiet")


def test_profile_changes_what_it_names_and_no_more(file: Path) -> None:
    text = ONE + 'options = { slice = "3ms" }\nlend = true\n' + PROFILE + '[profile.enclave.1]\ncpus = "1"\n'
    config = parse(file, text)
    assert config.under("busy")[1] == replace(config.enclaves[1], cpus=CpuSet([1]))
    assert config.enclaves[1].lending == Lending(lend=True)
    config = parse(file, text + 'policy = "rr"\n')
    assert config.under("busy")[1].shown == "rr", "another policy does not get the options of the first"
    config = parse(file, text + 'options = { slice = "7ms" }\n')
    assert config.under("busy")[1].shown == "biff slice=7ms"


@pytest.mark.parametrize(
    ("text", "line", "key", "reason"),
    [
        ("", 0, "enclave", "there is none"),
        ("enclave = 3", 1, "enclave", "not a table of enclaves"),
        (f"{ONE}[enclave.x]\n", 4, "enclave.x", '"x" is not the id'),
        (f"{ONE}[enclave.64]\n", 4, "enclave.64", "not the id"),
        (f"{ONE}[enclave.01]\n", 4, "enclave.01", "not the id"),
        ("[enclave]\n1 = 3\n", 2, "enclave.1", "not a table"),
        ('[enclave.1]\ncpus = "0"\n', 1, "enclave.1", "it has no policy"),
        ('[enclave.1]\npolicy = "rr"\n', 1, "enclave.1", "it has no cpus"),
        ('[enclave.1]\ncpus = "3-1"\npolicy = "rr"\n', 2, "enclave.1.cpus", "runs backwards"),
        ('[enclave.1]\ncpus = 3\npolicy = "rr"\n', 2, "enclave.1.cpus", "not a list of CPUs"),
        ('[enclave.1]\ncpus = "0"\npolicy = "bif"\n', 3, "enclave.1.policy", 'no policy "bif"'),
        ('[enclave.1]\ncpus = "0"\npolicy = "./none.py"\n', 3, "enclave.1.policy", "there is no such file"),
        (f'{ONE}options = {{ slice = "5" }}\n', 4, "enclave.1.options.slice", "bad duration"),
        (f"{ONE}[enclave.1.options]\nquantum = 5\n", 4, "enclave.1.options", "no option quantum"),
        (f"{ONE}options = 5\n", 4, "enclave.1.options", "not a table"),
        (f"{ONE}cpu = 5\n", 4, "enclave.1.cpu", "there is no such key"),
        (f'{ONE}runnable-timeout = "60s"\n', 4, "enclave.1.runnable-timeout", "up to 25s"),
        (f"{ONE}lend = 1\n", 4, "enclave.1.lend", "neither true nor false"),
        (f'{ONE}reclaim = "soon"\n', 4, "enclave.1.reclaim", "not one of now, tick"),
        (f'{ONE}join = "nginx"\n', 4, "enclave.1.join", "not an array of rules"),
        (f"{ONE}join = [{{}}]\n", 4, "enclave.1.join[0]", "every task fits"),
        (f"{ONE}[[enclave.1.join]]\nuid = 0\n[[enclave.1.join]]\nname = 3\n", 7, "enclave.1.join[1].name", "no such"),
        (f'{ONE}join = [{{ comm = "a-name-of-many-characters" }}]\n', 4, "enclave.1.join[0].comm", "15 characters"),
        (f'{ONE}join = [{{ uid = "nobody-at-all" }}]\n', 4, "enclave.1.join[0].uid", "there is no user"),
        (f"{ONE}join = [{{ comm = [] }}]\n", 4, "enclave.1.join[0].comm", "neither a text"),
        (f'{ONE}[enclave.2]\ncpus = "1-2"\npolicy = "rr"\n', 5, "enclave.2.cpus", "both have CPU 1"),
        (f"{ONE}profile = 3\n", 4, "enclave.1.profile", "no such key"),
        (f"{ONE}[profile]\n", 4, "profile", "not an array of tables"),
        (f"{ONE}[[profile]]\n", 4, "profile[0]", "needs a name"),
        (f"{ONE}{PROFILE}", 4, "profile[0]", "it changes no enclave"),
        (f"{ONE}{PROFILE}[profile.enclave.2]\n", 7, "profile[0].enclave.2", "there is no [enclave.2]"),
        (f"{ONE}{PROFILE}[profile.enclave.1]\njoin = []\n", 8, "profile[0].enclave.1.join", "no such key"),
        (f'{TWO}{PROFILE}[profile.enclave.1]\ncpus = "2"\n', 11, "profile[0].enclave.1.cpus", "both have CPU 2"),
        (f'{ONE}{PROFILE}[profile.enclave.1]\npolicy = "x"\n', 8, "profile[0].enclave.1.policy", "no policy"),
        (
            f'{ONE}[[profile]]\nname = "a"\nwhen = {{ for = "1s" }}\n[profile.enclave.1]\n',
            6,
            "profile[0].when",
            "needs",
        ),
        (
            f"{ONE}{PROFILE.replace('0.8', '80')}[profile.enclave.1]\n",
            6,
            "profile[0].when.load-above",
            "not a share from 0 to 1",
        ),
        (
            f"{ONE}{PROFILE.replace('load-above', 'load')}[profile.enclave.1]\n",
            6,
            "profile[0].when.load",
            "there is no such key",
        ),
        (
            f"{ONE}{PROFILE.replace('0.8', '0.8, load-below = 0.2')}[profile.enclave.1]\n",
            6,
            "profile[0].when.load-above",
            "no load is above",
        ),
        (
            f"{ONE}{PROFILE}[profile.enclave.1]\n{PROFILE}[profile.enclave.1]\n",
            9,
            "profile[1].name",
            'two profiles are named "busy"',
        ),
        (f"{ONE}cpus =\n", 4, "", "Invalid value"),
    ],
)
def test_wrong_file_is_refused_with_line_and_key(file: Path, text: str, line: int, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(file, text)
    error = caught.value
    assert (error.line, error.key) == (line, key)
    assert reason in str(error)
    assert str(error).startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert error.exit_status == 2


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"{ONE}policies = 3\n", "did you mean policy?"),
        (f"{ONE}run-timeout = 3\n", "did you mean runnable-timeout?"),
        (f"[enclaves.1]\n{ONE}", "did you mean enclave?"),
        (f"{ONE}zebra = 3\n", "choose from: cpus, policy"),
        ('[enclave.1]\ncpus = "0"\npolicy = "bif"\n', "did you mean biff?"),
    ],
)
def test_unknown_key_is_told_with_the_nearest(file: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(file, text)
    assert hint in (caught.value.hint or "")


def test_policy_file_is_beside_the_file_and_its_text_is_part_of_the_policy(file: Path) -> None:
    policy = file.parent / "mine.py"
    source = (Path(__file__).parents[2] / "examples" / "hybrid.py").read_text()
    policy.write_text(source)
    text = '[enclave.1]\ncpus = "0"\npolicy = "./mine.py"\n'
    first, again = (parse(file, text).enclaves[1] for _ in range(2))
    assert first.options.policy.has_agents
    assert first.fingerprint == again.fingerprint
    policy.write_text(source + "\n# changed\n")
    assert parse(file, text).enclaves[1].fingerprint != first.fingerprint


def live(config: Config, id: int, **changes: object) -> Live:
    """Enclave ``id`` as if it had been made from ``config``, with ``changes``."""
    one = config.enclaves[id]
    applied = Applied.of(one)
    made = Live(
        id,
        one.cpus,
        one.options.policy.name,
        applied,
        "",
        one.runnable_timeout_ns,
        one.cgroup_limits,
        one.lending,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_enclaves_as_in_the_file_do_not_differ(file: Path) -> None:
    config = parse(file, TWO)
    found = {id: live(config, id) for id in config.enclaves}
    assert plan.differences(config.enclaves, found, []) == []


def test_each_setting_that_differs_is_one_change(file: Path) -> None:
    config = parse(file, TWO)
    old = parse(file, TWO.replace("biff", "rr").replace('"0-1"', '"3"') + "lend = true\ncgroup-limits = false\n")
    found = {id: live(old, id) for id in old.enclaves}
    assert plan.differences(config.enclaves, found, []) == [
        Change(1, "policy", "rr", "biff"),
        Change(1, "cpus", "3", "0-1"),
        Change(2, "cgroup-limits", "off", "on"),
        Change(2, "lending", str(Lending(lend=True)), str(Lending())),
    ]
    assert plan.differences(config.enclaves, {}, [])[0] == Change(1, "enclave", None, "biff on CPU 0-1")
    only = {1: config.enclaves[1]}
    assert plan.differences(only, {id: live(config, id) for id in (1, 2)}, [2]) == [Change(2, "enclave", "rr", None)]


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ({"lost": "its agent is gone"}, "biff (its agent is gone)", "biff"),
        ({"applied": None}, "biff (options unknown)", "biff"),
    ],
)
def test_policy_that_does_not_decide_or_is_unknown_differs(
    file: Path, change: dict[str, object], before: str, after: str
) -> None:
    config = parse(file, ONE)
    assert plan.differences(config.enclaves, {1: live(config, 1, **change)}, []) == [Change(1, "policy", before, after)]


def test_upgrade_replaces_a_policy_that_is_the_same_by_name(file: Path) -> None:
    config = parse(file, ONE)
    found = live(config, 1)
    assert found.applied is not None
    upgraded = replace(found, applied=replace(found.applied, fingerprint="ghostbpf 0.0.9"))
    assert plan.differences(config.enclaves, {1: upgraded}, []) == [Change(1, "policy", "biff", "biff (other code)")]


def test_cpus_of_an_enclave_that_the_file_lacks_are_refused_before_a_change(file: Path) -> None:
    config = parse(file, TWO)
    other = {2: live(config, 2, cpus=CpuSet([0]))}
    only = {1: replace(config.enclaves[1], cpus=CpuSet([0]))}
    with pytest.raises(EnclaveBusy, match="enclave 2 holds CPU 0"):
        plan.check(only, other, [])
    plan.check(only, other, [2])
    with pytest.raises(GhostError, match="CPU 4000 is not online"):
        plan.check({1: replace(config.enclaves[1], cpus=CpuSet([4000]))}, {}, [])


def partitions() -> st.SearchStrategy[dict[int, CpuSet]]:
    """Enclaves 0 to 3 with CPUs, no CPU in two of them; CPUs of number 4 are free."""
    owners = st.lists(st.integers(0, 4), min_size=1, max_size=8)
    return owners.map(
        lambda owners: {id: CpuSet(cpu for cpu, owner in enumerate(owners) if owner == id) for id in set(owners) - {4}}
    )


@given(partitions(), partitions())
def test_steps_lead_to_the_target_and_no_step_shares_or_empties(
    now: dict[int, CpuSet], target: dict[int, CpuSet]
) -> None:
    now = {id: cpus for id, cpus in now.items() if id in target}
    held = dict(now)
    try:
        steps = resize_steps(now, target)
    except GhostError:
        # Then some enclaves that exist exchange all that they have, one CPU each, and none of it is free.
        stuck = [id for id in now if now[id].isdisjoint(target[id])]
        assert len(stuck) > 1
        return
    for id, cpus in steps:
        assert cpus
        assert cpus.isdisjoint(CpuSet(cpu for other in held.keys() - {id} for cpu in held[other]))
        assert id in held or cpus == target[id], "an enclave is made with all its CPUs"
        held[id] = cpus
    assert held == target


def test_enclaves_exchange_their_cpus() -> None:
    a, b = CpuSet([0, 1]), CpuSet([2, 3])
    assert resize_steps({1: a, 2: b}, {1: b, 2: a})[-2:] == [(1, b), (2, a)]
    with pytest.raises(GhostError, match="enclaves 1 and 2 exchange CPUs"):
        resize_steps({1: CpuSet([0]), 2: CpuSet([1])}, {1: CpuSet([1]), 2: CpuSet([0])})


def ghostbpf(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ghostbpf.tools.cli", *arguments]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("command", ["apply", "service"])
def test_command_refuses_a_wrong_file_with_status_2(file: Path, command: str) -> None:
    file.write_text(f"{ONE}policies = 3\n")
    done = ghostbpf(command, str(file), directory=file.parent)
    assert done.returncode == 2
    assert done.stderr.splitlines()[:2] == [
        f"error: {file}:4: enclave.1.policies: there is no such key",
        "  try: did you mean policy?",
    ]


@pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="this kernel has sched_ext")
def test_service_that_cannot_begin_says_why_and_ends(file: Path) -> None:
    file.write_text(ONE)
    done = ghostbpf("service", "--json", str(file), directory=file.parent)
    assert done.returncode == 1
    (event,) = (json.loads(line) for line in done.stdout.splitlines())
    assert event["event"] == "error"
    assert event["text"].startswith(f"{file} cannot be applied\nerror: ")
    assert "has no sched_ext" in event["text"]
