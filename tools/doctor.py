# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf doctor``: what this machine has, what it lacks, and a hint for each lack."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ..loaders import _libbpf, capabilities, kfuncs, libbcc, sched_ext
from ..loaders.btf import VMLINUX, Btf
from ..loaders.errors import GhostError
from ..schedulers import limits
from ..schedulers.agents import extension
from ..schedulers.enclave import Enclaves
from ..schedulers.pins import BPFFS
from .caveats import applied_settings
from .output import json_option, printable

_PARTITION = "use a cpuset partition instead: CMD must be in its cgroup before it joins an enclave of its CPUs"
#: What a build of the native half needs.
_BUILD = "with a C compiler and Python's headers (apt install gcc python3-dev): make setup, or pip install again"

#: The checks that tracers do not need.
_FOR_POLICIES = {"sched_ext", "kfuncs", "isolcpus"}


@dataclass(frozen=True)
class Row:
    """One check: ``verdict`` is ok, warn or fail; the last two have a ``hint``."""

    what: str
    verdict: str
    found: str
    hint: str = ""


@click.command(epilog="\b\nExamples:\n  ghostbpf doctor\n  ghostbpf doctor --json")
@json_option
def command(as_json: bool) -> int:
    """Check whether this machine can run ghostbpf, with a hint for each failed check.

    The exit status is 0 or 1.
    """
    rows = list(examine())
    failed = [row for row in rows if row.verdict == "fail"]
    if as_json:
        for row in rows:
            click.echo(json.dumps(vars(row)))
        return int(bool(failed))
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for row in rows:
        click.echo(f"{click.style(f'{row.verdict:4}', fg=colours[row.verdict])}  {row.what:<16} {printable(row.found)}")
        if row.hint:
            click.echo(f"      {'':<16} -> {printable(row.hint)}")
    click.echo()
    if failed:
        alone = " (all tracers but dsqlat work)" if {row.what for row in failed} <= _FOR_POLICIES else ""
        click.echo(f"NOT READY: {', '.join(row.what for row in failed)}{alone}")
    else:
        click.echo("READY: sudo ghostbpf run biff -- CMD")
    return int(bool(failed))


def examine() -> Iterator[Row]:
    """Every row of the report; a check that raises fails with the reason."""
    for what, check in _CHECKS.items():
        try:
            yield check(what)
        except (GhostError, OSError) as error:
            yield Row(what, "fail", str(error), getattr(error, "hint", None) or "")


def _kernel(what: str) -> Row:
    return Row(what, "ok", f"{os.uname().release} {platform.machine()}")


def _sched_ext(what: str) -> Row:
    status = sched_ext.status()
    if status.state == "disabled":
        return Row(what, "ok", "available, no scheduler loaded")
    found = f"{status.state}: {status.ops}" + (" (all tasks)" if status.switch_all else " (SCHED_EXT tasks)")
    if status.ops == "ghostbpf":
        return Row(what, "ok", found)
    return Row(what, "fail", found, f"stop {status.ops}: the kernel allows one scheduler")


def _btf(what: str) -> Row:
    return Row(what, "ok", f"{len(Btf.kernel())} types, {VMLINUX.stat().st_size >> 20} MiB")


def _kfuncs(what: str) -> Row:
    found = kfuncs.judge(Btf.kernel())
    if malformed := found.malformed:
        hint = "boot another build of the kernel: this one was made with a pahole older than 1.31"
        return Row(what, "fail", f"{len(malformed)} of {found.total} malformed, {malformed[0]} first", hint)
    if not found.total:
        return Row(what, "fail", "none", "boot a kernel with CONFIG_SCHED_CLASS_EXT=y, or use: ghostbpf vm")
    return Row(what, "ok", f"{found.total} of sched_ext, all well-formed")


def _jit(what: str) -> Row:
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    if path.exists() and path.read_text(encoding="utf-8").strip() == "0":
        return Row(what, "fail", "off", "sysctl net.core.bpf_jit_enable=1")
    return Row(what, "ok", "on")


def _compiler(what: str) -> Row:
    return Row(what, "ok", f"bcc {libbcc.version()} ({libbcc.library()})")


def _bcc_python(what: str) -> Row:
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return Row(what, "warn", "not visible to this Python; only comparisons with stock bcc need it", "make setup")
    if not Path(spec.origin).with_name("libbcc.py").exists():
        return Row(what, "warn", f"{spec.origin} is not the BPF Compiler Collection", "pip uninstall bcc")
    return Row(what, "ok", str(Path(spec.origin).parent))


def _library(what: str) -> Row:
    major, minor = _libbpf.version()
    return Row(what, "ok", f"{major}.{minor}")


def _capabilities(what: str) -> Row:
    held = capabilities.held()
    if missing := [name for name in capabilities.NEEDED if name not in held]:
        return Row(what, "fail", f"missing: {' '.join(missing)}", "run ghostbpf with sudo")
    return Row(what, "ok", " ".join(capabilities.NEEDED))


def _bpffs(what: str) -> Row:
    if f" {BPFFS} bpf " in Path("/proc/mounts").read_text(encoding="utf-8"):
        return Row(what, "ok", f"mounted at {BPFFS}")
    return Row(what, "warn", "not mounted; run mounts it", f"mount -t bpf -o mode=700 bpf {BPFFS}")


def _preempt_rt(what: str) -> Row:
    realtime = Path("/sys/kernel/realtime")
    on = realtime.exists() and realtime.read_text(encoding="utf-8").strip() == "1"
    return Row(what, "ok", "a PREEMPT_RT kernel" if on else "no")


def _isolcpus(what: str) -> Row:
    isolcpus = sched_ext.boot_isolation()
    if isolcpus and sched_ext.isolates_domains(isolcpus):
        return Row(what, "fail", isolcpus, f"{sched_ext.WITHOUT_ISOLCPUS}; {_PARTITION}")
    return Row(what, "ok", isolcpus or "none")


def _cgroup_limits(what: str) -> Row:
    without_effect = _void_limits(os.getpid(), {"cpu.max"} if limits.are_applied() else set())
    # Reading enclaves needs the capabilities that another row checks.
    with contextlib.suppress(GhostError):
        for enclave in Enclaves.open() or ():
            for task in enclave.tasks():
                without_effect |= _void_limits(task.tid, applied_settings(enclave))
    if not without_effect:
        return Row(what, "ok", "none of this process or of a task in an enclave")
    hint = "cpu.max holds in every enclave, unless its limits are off; weights hold under cfs_bpf"
    return Row(what, "warn", f"do not hold in an enclave: {'; '.join(map(str, without_effect.values()))}", hint)


def _void_limits(tid: int, applied: set[str]) -> dict[str, limits.Limit]:
    """The limits of a task that do not hold in an enclave, by cgroup."""
    found = ((limit.cgroup, limit.without(applied)) for limit in limits.of_task(tid))
    return {cgroup: limit for cgroup, limit in found if limit is not None}


def _hz(what: str) -> Row:
    # The coarse clock (CLOCK_MONOTONIC_COARSE, 6) advances one tick at a time.
    tick = time.clock_getres(6)
    return Row(what, "ok", f"{1 / tick:.0f}: a slice ends on a tick, each {tick * 1000:.0f} ms")


def _python(what: str) -> Row:
    return Row(what, "ok", f"{platform.python_version()} ({sys.executable})")


def _agents(what: str) -> Row:
    if extension.native is None:
        return Row(what, "warn", f"in Python alone, and slower ({extension.missing})", _BUILD)
    return Row(what, "ok", f"with their native half, version {extension.VERSION}")


_CHECKS: dict[str, Callable[[str], Row]] = {
    "kernel": _kernel,
    "sched_ext": _sched_ext,
    "BTF": _btf,
    "kfuncs": _kfuncs,
    "BPF JIT": _jit,
    "compiler": _compiler,
    "bcc (Python)": _bcc_python,
    "libbpf": _library,
    "capabilities": _capabilities,
    "bpffs": _bpffs,
    "PREEMPT_RT": _preempt_rt,
    "isolcpus": _isolcpus,
    "cgroup limits": _cgroup_limits,
    "HZ": _hz,
    "Python": _python,
    "agents": _agents,
}
