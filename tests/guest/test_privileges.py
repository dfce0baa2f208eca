# SPDX-License-Identifier: Apache-2.0
"""Commands and agents in charge have no more privileges than they need."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from agents import MakeAgentProcess, children_of
from command import ghostbpf, running, with_only
from ghostbpf.loaders.capabilities import NUMBERS
from ghostbpf.schedulers import pins
from ghostbpf.schedulers.agents import Agents
from workload import Workload, offline, until

sys.path.insert(0, str(Path(__file__).parents[1]))
from privileges import check_exact, rows

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

KEPT = sum(1 << NUMBERS[name] for name in ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE", "CAP_IPC_LOCK"))
ROWS = rows("### With enclaves")
#: The row with an agent.
AGENT = "run edf"
#: The rows of the default set, which make an enclave, change and destroy it; the others take minutes.
QUICK = ("run biff", "enclave add", "enclave rm", "enclave swap", "enclave destroy 1")


def privileges(pid: int) -> tuple[int, int, str]:
    """The effective and permitted capabilities of a process, and whether it has no_new_privs."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"]


def test_agents_in_charge_keep_four_capabilities_and_get_no_others(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, agents = agent_process("2-3", "fifo_per_cpu")
    child = workload.spinner(one)
    with offline(3):
        child.progress(10)
    # The agent of the CPU that is back is made by one that has dropped its privileges.
    found = Agents.open(one.id)
    assert found is not None
    until(lambda: found.channels[1 + 3].tid, "CPU 3 has an agent")
    processes = [agents.pid, *children_of(agents.pid)]
    assert len(processes) == 3
    assert [privileges(pid) for pid in processes] == [(KEPT, KEPT, "1")] * 3
    child.progress(10)
    assert agents.check()


@pytest.mark.own_core
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line for line in ROWS if line.startswith(QUICK)], id="quick"),
        pytest.param(list(ROWS), id="all", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_commands_need_exactly_the_listed_capabilities(
    lines: list[str], workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    file = tmp_path / "enclaves.toml"
    file.write_text('[enclave.1]\ncpus = "2-3"\npolicy = "biff"\noptions = { slice = "20ms" }\n')
    values = {"FILE": file, "PID": workload.sleeper().pid}
    mode = pins.BPFFS.stat().st_mode
    pins.BPFFS.chmod(0o711)  # for `hints admit`
    try:
        for line in lines:
            words = [values.get(word, word) for word in line.split()]

            def run(capabilities: list[str], words: list[object] = words) -> tuple[int, str]:
                with running(*words, first=with_only(*capabilities)) as command:
                    if words[0] == "service":
                        until(lambda: command.ended(0) or "is applied" in command.err, "it is applied, or refused")
                        command.signal(signal.SIGTERM)
                    done = command.wait()
                print(words, capabilities, done)
                return done.status, done.err

            if words[0] == "trace":
                assert ghostbpf(*words).status == 0  # unlike policies, it was not compiled before the guest started
            err = check_exact(ROWS[line], run)
            if line.startswith(AGENT):
                assert re.fullmatch(r"warning: the agent's memory is not locked.*\n  try: .*CAP_IPC_LOCK.*\n", err)
            else:
                assert "CAP_IPC_LOCK" not in err
    finally:
        pins.BPFFS.chmod(mode)
