# SPDX-License-Identifier: Apache-2.0
"""Pid and cgroup namespaces: a number or path names the right task or cgroup, or is refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.hints import Hints
from tracing import DEADLINE, ghostbpf_trace

PIDS = ["--pid", "--fork", "--mount-proc"]

#: A task with a name of its own that often waits for a CPU.
NAPPER = """
    import json, subprocess, sys
    from ghostbpf.schedulers import pids
    name = "open('/proc/self/comm', 'w').write('contained')"
    nap = f"import time\\n{name}\\nprint(flush=True)\\nwhile True: time.sleep(.002)"
    napper = subprocess.Popen([sys.executable, "-c", nap], stdout=subprocess.PIPE)
    napper.stdout.readline()
"""


def unshared(options: list[str], *command: object) -> subprocess.CompletedProcess[str]:
    """Run COMMAND in new namespaces to its end; skip if they cannot be made."""
    words = ["unshare", *options, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.stderr.startswith("unshare: "):
        pytest.skip(done.stderr)
    return done


def python(options: list[str], script: str, *arguments: object) -> Any:
    """Run a script in new namespaces; returns its output, parsed as JSON."""
    done = unshared(options, sys.executable, "-c", textwrap.dedent(script), *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("bcc")
def test_numbers_are_those_that_the_kernel_shows_on_either_side() -> None:
    script = """
        import json, os, sys
        from pathlib import Path
        from ghostbpf.schedulers import pids
        me = pids.to_initial(os.getpid())
        with_each = [me, pids.to_initial(1 << 21)]
        pids._call_initial = lambda: None  # as on a kernel that has no such program
        with_each += [pids.to_initial(os.getpid()), pids.to_initial(1 << 21)]
        print(json.dumps([os.getpid(), me, pids.to_local([me, 1, 2]), with_each]), flush=True)
        sys.stdin.read()
    """
    words = ["unshare", *PIDS, sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            pytest.skip("no pid namespace can be made")
        local, initial, known, with_each = json.loads(line)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{initial}/status").read_text().splitlines())
        process.stdin.close()
    assert status["NSpid"].split()[-1] == str(local)
    assert int(status["PPid"]) == process.pid
    # The initial namespace has pids 1 and 2, too; this one does not.
    assert known == {str(initial): local}
    assert with_each == [initial, 0] * 2


@pytest.mark.usefixtures("bcc")
@pytest.mark.parametrize("option", ["-p", "-t"])
def test_tracer_in_a_pid_namespace_takes_its_pids(option: str) -> None:
    script = f"""{NAPPER}
    trace = subprocess.run([*sys.argv[1:], "{option}", str(napper.pid)], capture_output=True, text=True)
    print(json.dumps([napper.pid, pids.to_initial(napper.pid), trace.returncode, trace.stdout, trace.stderr]))
    napper.kill()
    """
    command = ghostbpf_trace("runqlat", "--json", "-L", "-d", "0.5")
    local, initial, status, out, err = python(PIDS, script, *command)
    assert status == 0, err
    assert "tids and pids are those of the initial pid namespace" in err
    *seen, end = map(json.loads, out.splitlines())
    assert {(line["by"]["tid"], line["by"]["comm"]) for line in seen} == {(initial, "contained")}
    assert end["events"] > 10
    assert local != initial


@pytest.mark.usefixtures("bcc")
def test_stacks_in_a_pid_namespace_have_the_names_of_their_own_process() -> None:
    script = f"""{NAPPER}
    from ghostbpf.tools.trace.symbols import Symbols
    trace = subprocess.run([*sys.argv[1:], str(napper.pid)], capture_output=True, text=True)
    with Symbols() as symbols:
        print(json.dumps([trace.returncode, trace.stdout, trace.stderr, symbols.user(1, 0x401000)]))
    napper.kill()
    """
    status, out, err, hidden = python(PIDS, script, *ghostbpf_trace("offcputime", "-U", "--json", "-d", "0.5", "-p"))
    assert status == 0, err
    *seen, _ = map(json.loads, out.splitlines())
    assert any("nanosleep" in frame for line in seen for frame in line["frames"]), out
    assert hidden == "[unknown]", "pid 1 of the initial namespace is another process"


@pytest.mark.usefixtures("bcc")
def test_accounting_of_the_kernel_and_of_bpf_meet_in_a_pid_namespace() -> None:
    script = f"""{NAPPER}
    trace = subprocess.run([*sys.argv[1:], str(napper.pid)], capture_output=True, text=True)
    print(json.dumps([napper.pid, trace.returncode, trace.stdout, trace.stderr]))
    napper.kill()
    """
    tid, status, out, err = python(PIDS, script, *ghostbpf_trace("delays", "--json", "-d", "1"))
    assert status == 0, err
    assert "initial" not in err
    row, _ = map(json.loads, out.splitlines())
    assert (row["tid"], row["comm"]) == (tid, "contained")
    assert row["bpf"] > 10
    assert row["cpu"] > 10


def test_tracer_says_which_tasks_it_cannot_tell_in_a_pid_namespace() -> None:
    for options, arguments, said in (
        (PIDS, ("runqlat", "-p", "999999", "-d", "1"), "there is no process 999999"),
        (["--pid", "--fork"], ("runqlat", "-p", "1", "-d", "1"), "/proc is not that of the pid namespace of process"),
        (["--pid", "--fork"], ("delays", "1", "-d", "1"), "/proc is not that of the pid namespace of process"),
    ):
        done = unshared(options, *ghostbpf_trace(*arguments))
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert f"error: {said}" in done.stderr
        assert "  try: " in done.stderr


@pytest.mark.usefixtures("root")
def test_hints_are_read_but_not_given_from_within_a_pid_namespace(bpffs: Path) -> None:
    with Hints.create(bpffs / "hints", items=8) as hints:
        hints.set_item(3, tid=4711)
        script = """
            import json, sys
            from ghostbpf.hints import Hints
            from ghostbpf.loaders.pid_namespace import NamespaceError

            said = []
            with Hints.open(sys.argv[1]) as hints:
                for give in (
                    lambda: hints.set_item(4, tid=1), lambda: hints.set_runnable(3, False),
                    lambda: hints.set_class(1, one_shot=True)
                ):
                    try:
                        give()
                    except NamespaceError as error:
                        said.append(str(error))
                print(json.dumps([said, hints.item(3).tid]))
        """
        said, tid = python(PIDS, script, bpffs / "hints")
        assert said == ["cannot give hints from within a pid namespace"] * 3
        assert tid == 4711
        assert [index for index, _ in hints.updates()] == [3]


#: Run in a mount namespace; with "inside", also in a cgroup namespace whose root is the test's cgroup.
CGROUPS = """
    import json, os, subprocess, sys
    from pathlib import Path
    from ghostbpf.schedulers import cgroups
    from ghostbpf.schedulers.processes import Rule

    where, script, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    whole, second, part = where / "whole", where / "second", where / "a part"
    top = whole / name

    def found(*paths):
        shown = {}
        for path in paths:
            try:
                directory = cgroups.find(str(path))
                shown[str(path)] = [os.stat(directory).st_ino, sorted(Rule(cgroups=(directory,)).matching())]
            except cgroups.NoSuchCgroup:
                shown[str(path)] = None
        return shown

    if sys.argv[4:]:
        (top / "cgroup.procs").write_text(str(os.getpid()))
        names = ["/below", "below", f"/../{name}/below", "/none", "none", f"/{name}", "/"]
        print(json.dumps(found(top / "below", second / name / "below", part, *names)))
        (whole / "cgroup.procs").write_text(str(os.getpid()))
        sys.exit()
    for directory in (whole, second):
        directory.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", directory], check=True)
    part.mkdir()
    (top / "below").mkdir(parents=True)
    subprocess.run(["mount", "--bind", top / "below", part], check=True)
    child = subprocess.Popen(["sleep", "60"])
    try:
        (top / "below/cgroup.procs").write_text(str(child.pid))
        (top / "cgroup.procs").write_text(str(os.getpid()))
        inside = ["unshare", "--cgroup", sys.executable, "-c", script, where, script, name, "inside"]
        done = subprocess.run(inside, capture_output=True, text=True)
        (whole / "cgroup.procs").write_text(str(os.getpid()))
        assert done.returncode == 0, done.stderr
        outside = found(top / "below", second / name / "below", part, f"/{name}/below", f"{name}/below", "/below", "/")
        print(json.dumps([child.pid, (top / "below").stat().st_ino, outside, json.loads(done.stdout)]))
    finally:
        child.kill()
        child.wait()
        (top / "below").rmdir()
        top.rmdir()
"""


@pytest.mark.usefixtures("root")
def test_cgroup_is_its_directory_wherever_it_is_mounted_and_in_a_namespace(tmp_path: Path) -> None:
    script, name = textwrap.dedent(CGROUPS), f"ghostbpf-{tmp_path.name}"[:60]
    options = ["--mount", "--propagation", "private"]
    pid, id, outside, inside = python(options, CGROUPS, tmp_path, script, name)
    meant = [id, [pid]]
    by_directory = [str(tmp_path / one / name / "below") for one in ("whole", "second")] + [str(tmp_path / "a part")]
    for path in (*by_directory, f"/{name}/below", f"{name}/below"):
        assert outside[path] == meant, path
    assert outside["/below"] is None
    assert pid in outside["/"][1]
    # From inside, the root of the bind mount is /below; the other mounts begin above the namespace's root.
    for path in (*by_directory, "/below", "below", f"/../{name}/below"):
        assert inside[path] == meant, path
    assert [inside[path] for path in ("/none", "none", f"/{name}", "/")] == [None] * 4
