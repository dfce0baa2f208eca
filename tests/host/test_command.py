# SPDX-License-Identifier: Apache-2.0
"""The command on a kernel without sched_ext."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ghostbpf.loaders import kfuncs, sched_ext
from ghostbpf.loaders.btf import Btf
from ghostbpf.schedulers.errors import NoSuchPolicy
from ghostbpf.schedulers.policy import duration_ns, find
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.output import human_ns

COMMANDS = [
    (),
    ("run",),
    *(("run", name) for name in POLICIES),
    ("enclave",),
    ("hints",),
    *(("enclave", name) for name in ("ls", "show", "add", "rm", "destroy", "swap", "resize", "watch", "auto-join")),
    ("apply",),
    ("service",),
    ("top",),
    ("status",),
    ("metrics",),
    ("pushtosched",),
    ("bench",),
    ("experiment",),
    *(("experiment", name) for name in ("rocksdb", "antagonist", "centralized", "shinjuku", "shenango", "report")),
    *(("experiment", name) for name in ("global-scalability", "costs", "simple-exp", "simple-cfs", "simple-edf")),
    ("record",),
    ("explain",),
    ("compare",),
    ("mcp",),
    ("fd",),
    ("fd", "send"),
    ("fd", "receive"),
    ("policies",),
    ("new",),
    ("doctor",),
    ("vm",),
]
no_sched_ext = pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="this kernel has sched_ext")


def ghostbpf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ghostbpf.tools.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_examples_within_80_columns(command: tuple[str, ...]) -> None:
    done = ghostbpf(*command, "--help", COLUMNS="80")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_enrol_is_a_hidden_alias_of_auto_join() -> None:
    listed = ghostbpf("enclave", "--help", COLUMNS="80").stdout
    assert "auto-join" in listed
    assert "enrol" not in listed
    alias, command = (ghostbpf("enclave", name, "--help", COLUMNS="80") for name in ("enrol", "auto-join"))
    assert alias.returncode == 0
    assert alias.stdout.replace("enclave enrol", "enclave auto-join") == command.stdout
    refused = ghostbpf("enclave", "enrol", "1")
    assert refused.returncode == 2
    assert "give a rule: --comm, --cgroup, --uid or --parent" in refused.stderr


def test_policies_are_listed_as_json() -> None:
    rows = [json.loads(line) for line in ghostbpf("policies", "--json").stdout.splitlines()]
    assert [row["policy"] for row in rows] == list(POLICIES)
    assert all(row["what it does"] for row in rows)


def test_list_of_policies_is_within_80_columns_and_complete() -> None:
    listed = ghostbpf("policies").stdout
    assert max(map(len, listed.splitlines())) <= 80
    rows = [json.loads(line) for line in ghostbpf("policies", "--json").stdout.splitlines()]
    for row in rows:
        options = re.findall(r"--\S+ \S+", row["options"])
        assert options
        assert all(option in listed for option in options)
    words = " ".join(listed.split())
    assert all(row["what it does"].split()[-1] in words for row in rows)


def test_unknown_policy_names_the_nearest() -> None:
    done = ghostbpf("run", "bif", "--", "true")
    assert done.returncode == 2
    assert done.stderr == 'error: there is no policy "bif"\n  try: did you mean biff?\n'


def test_unknown_policy_without_a_near_name_lists_all() -> None:
    with pytest.raises(NoSuchPolicy) as error:
        find("zzz", POLICIES)
    assert error.value.suggestion is None
    assert all(name in (error.value.hint or "") for name in POLICIES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("doctors", "No such command 'doctors'. Did you mean 'doctor'?"),
        ("enclave swaps 1 rr", "No such command 'swaps'. Did you mean 'swap'?"),
        ("run --cpus 2-3 biff", "--cpus is an option of biff, and goes after it: ghostbpf run biff --cpus"),
        ("--json policies", "--json is an option of policies, and goes after it: ghostbpf policies --json"),
        ("run biff make -j8", "(if it is an option of CMD, write -- before CMD)"),
    ],
)
def test_misplaced_word_is_refused_with_its_place(line: str, message: str) -> None:
    done = ghostbpf(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_unknown_option_alone_has_no_hint_about_the_command() -> None:
    assert "CMD, write" not in ghostbpf("run", "biff", "--nonsense").stderr
    assert "CMD, write" not in ghostbpf("run", "biff", "--nonsense", "--", "make", "-j8").stderr


@pytest.mark.parametrize("text", ["0", "-1ms", "5x", "11s", "ms", "", "nan", "1 ms s", "infs"])
def test_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bad duration"):
        duration_ns(text)


@pytest.mark.parametrize(
    ("text", "ns"), [("50ms", 50_000_000), ("300us", 300_000), ("1.5s", 1_500_000_000), ("1ns", 1)]
)
def test_duration_is_read(text: str, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "biff", "--slice", "5x", "--", "true"),
        ("run", "biff", "--cpus", "0-x", "--", "true"),
        ("run", "biff", "--enclave", "64", "--", "true"),
        ("run", "biff", "--all", "--cpus", "0", "--", "true"),
        ("run", "biff", "--nonsense"),
        ("enclave", "show"),
        ("enclave", "add", "1"),
        ("enclave", "destroy"),
        ("new",),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_wrong_command_line_exits_2(arguments: tuple[str, ...]) -> None:
    done = ghostbpf(*arguments)
    assert done.returncode == 2, done.stderr
    assert "rror: " in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


@no_sched_ext
@pytest.mark.usefixtures("root")
def test_run_without_sched_ext_says_what_to_boot() -> None:
    done = ghostbpf("run", "biff", "--", "true")
    assert done.returncode == 1
    assert "has no sched_ext" in done.stderr
    assert "ghostbpf vm" in done.stderr


@no_sched_ext
def test_doctor_fails_with_a_hint_for_each_missing_feature() -> None:
    done = ghostbpf("doctor", "--json")
    rows = {row["what"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert rows["sched_ext"]["verdict"] == "fail"
    assert all(row["hint"] for row in rows.values() if row["verdict"] == "fail")
    assert rows["BTF"]["verdict"] == "ok"
    verdict = ghostbpf("doctor").stdout.splitlines()[-1]
    assert verdict.startswith("NOT READY: sched_ext")
    failed = {what for what, row in rows.items() if row["verdict"] == "fail"}
    assert verdict.endswith("(all tracers but dsqlat work)") == (failed <= {"sched_ext", "kfuncs", "isolcpus"})


def test_only_isolated_scheduling_domains_prevent_an_attach() -> None:
    assert sched_ext.isolates_domains("1-3")
    assert sched_ext.isolates_domains("domain,managed_irq,2")
    assert not sched_ext.isolates_domains("managed_irq,2-3,5")
    assert not sched_ext.isolates_domains("nohz,1-3")


@no_sched_ext
def test_a_kernel_without_sched_ext_has_none_of_its_kfuncs() -> None:
    assert kfuncs.judge(Btf.kernel()) == kfuncs.Kfuncs(0, ())


def test_times_have_the_unit_that_suits() -> None:
    assert [human_ns(n) for n in (740, 12_340, 4_100_000, 2.5e9)] == ["740 ns", "12.3 us", "4.1 ms", "2.5 s"]
