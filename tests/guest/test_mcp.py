# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf mcp`` changes a real enclave, by the SDK's own client over stdio."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import guest_python
import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclaves
from workload import Workload, present_cpus

pytestmark = [pytest.mark.soak, pytest.mark.kernel_independent, pytest.mark.usefixtures("quiet")]

#: Make the calls that stdin has, a line each, by the SDK's client; print each result's parts as a line.
CLIENT = """
import json, os, sys
import anyio
from mcp import Client, StdioServerParameters

async def main():
    server = StdioServerParameters(command="ghostbpf", args=["mcp", *sys.argv[1:]], env=dict(os.environ))
    async with Client(server) as client:
        for line in sys.stdin:
            tool, arguments = json.loads(line)
            done = await client.call_tool(tool, arguments)
            print(json.dumps([done.is_error, [part.text for part in done.content]]), flush=True)

anyio.run(main)
"""


class Client:
    """A client process and, below it, a server with ``options``."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            # The test process is bound to CPU 0, which is in no enclave.
            ["taskset", "-c", str(present_cpus()), sys.executable, "-c", CLIENT, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=guest_python.environment(),
            text=True,
        )

    def call(self, tool: str, **arguments: Any) -> str:
        """The text of the result of a call that must succeed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([tool, arguments]), file=self._process.stdin, flush=True)
        is_error, parts = json.loads(self._process.stdout.readline())
        assert not is_error, parts
        return "\n".join(parts)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


@guest_python.needed
def test_client_makes_changes_and_destroys_an_enclave(workload: Workload) -> None:
    child = workload.sleeper()  # forked before there is a pipe to the client, whose end it would keep open
    client = Client("--allow-changes")
    client.call("run_biff", cpus="1", keep=True, cmd=["true"])
    one = Enclaves.find(1)
    assert "1 task joined enclave" in client.call("enclave_add", id=one.id, pids=[child.pid])
    assert "1 task left enclave" in client.call("enclave_rm", id=one.id, pids=[child.pid])
    assert "1 task joined enclave" in client.call("enclave_add", id=one.id, pids=[child.pid])
    client.call("enclave_swap", id=one.id, policy="rr", set=["slice=2ms"])
    client.call("enclave_resize", id=one.id, cpus="+2")
    shown = json.loads(client.call("enclave_show", id=one.id, tasks=True))
    assert (shown["policy"], shown["cpus"], [task["tid"] for task in shown["task_list"]]) == ("rr", "1-2", [child.pid])
    assert (one.policy, one.cpus) == ("rr", CpuSet([1, 2]))
    assert client.call("enclave_destroy", id=one.id) == f"enclave {one.id} is gone\n"
    assert Enclaves.open() is None
    client.close()
