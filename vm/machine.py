# SPDX-License-Identifier: Apache-2.0
"""The programs that run a guest, and their command lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .init import CONTROL_PORT, IO_PORT

# Older versions translate code while the guest's kernel patches it: attaching sometimes ends in an int3 oops.
QEMU_MINIMUM = (8, 1)

# A child that outlives this process would keep the guest's memory and its share.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True)
class Tools:
    """The commands of QEMU and the Rust virtiofsd."""

    qemu: tuple[str, ...]
    virtiofsd: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Share:
    """A host directory that the guest sees under `path` (the root: empty)."""

    tag: str
    directory: Path
    path: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class Machine:
    """A virtual machine: `memory` in MiB, `accel` kvm or tcg, `append` kernel parameters, `start` init's script.

    With `exact` (TCG only), the guest's clock counts its instructions.
    """

    kernel: Path
    cpus: int
    memory: int
    accel: str
    append: str = ""
    start: str = ""
    exact: bool = False


def tools_in(tree: Path) -> Tools:
    """The tools in a tools tree, run by its dynamic loader with its libraries, without a chroot."""
    loader = (
        str(tree / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(tree / "usr/lib/x86_64-linux-gnu"),
    )
    qemu = (*loader, str(tree / "usr/bin/qemu-system-x86_64"))
    data = ("-L", str(tree / "usr/share/qemu"), "-L", str(tree / "usr/share/seabios"))
    return Tools((*qemu, *data), (*loader, str(tree / "usr/libexec/virtiofsd")), _version(qemu))


def host_tools() -> Tools | None:
    """The host's tools; None if one is missing or too old."""
    qemu = shutil.which("qemu-system-x86_64")
    virtiofsd = shutil.which("virtiofsd", path=f"{os.environ.get('PATH', '')}:/usr/libexec:/usr/lib/qemu")
    if not qemu or not virtiofsd:
        return None
    version = _version((qemu,))
    if tuple(int(n) for n in version.split(".")) < QEMU_MINIMUM:
        return None
    # The older virtiofsd in C has other options; its version line begins with "virtiofsd version".
    if not re.match(r"virtiofsd \d", _first_line((virtiofsd, "--version"))):
        return None
    return Tools((qemu,), (virtiofsd,), version)


def _first_line(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


def _version(qemu: Sequence[str]) -> str:
    match = re.search(r"version (\d+\.\d+(\.\d+)?)", _first_line((*qemu, "--version")))
    return match[1] if match else "0.0"


def virtiofsd_argv(tools: Tools, share: Share, listener: int) -> list[str]:
    """The command that serves `share` on the listening socket `listener`."""
    return [
        *_DIE_WITH_PARENT,
        *tools.virtiofsd,
        f"--fd={listener}",
        f"--shared-dir={share.directory}",
        # The root does not change while the guest runs; a shared directory may.
        f"--cache={'auto' if share.path else 'always'}",
        "--sandbox=none",
        "--log-level=error",
        *(["--readonly"] if share.read_only else []),
    ]


def qemu_argv(
    tools: Tools, machine: Machine, *, console: int, io: int, control: int, shares: Sequence[tuple[str, int]]
) -> list[str]:
    """The command that starts `machine`; numbers are inherited sockets, `shares` has the tag and socket of each."""
    argv = [
        *_DIE_WITH_PARENT,
        *tools.qemu,
        *("-name", "ghostbpf", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
        *_accelerator(machine),
        *("-machine", "pc,memory-backend=mem,usb=off,vmport=off"),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory}M"),
        # vhost-user devices access the guest's memory from another process.
        *("-object", f"memory-backend-memfd,id=mem,size={machine.memory}M,share=on"),
        *("-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci"),
    ]
    for name, fd in ((IO_PORT, io), (CONTROL_PORT, control)):
        argv += ["-chardev", f"socket,id={name},fd={fd}", "-device", f"virtserialport,chardev={name},name={name}"]
    for tag, fd in shares:
        argv += ["-chardev", f"socket,id={tag},fd={fd}", "-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return [*argv, "-kernel", str(machine.kernel), "-append", _command_line(machine)]


def _accelerator(machine: Machine) -> list[str]:
    if machine.accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if machine.exact:
        # One instruction is 1 ns of the guest's clock, independently of the host: one thread runs all CPUs in turn,
        # and if all are idle the clock advances to the next timer.
        return ["-accel", "tcg,thread=single,tb-size=512", "-cpu", "max", "-icount", "shift=0,sleep=off"]
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]


def _command_line(machine: Machine) -> str:
    words = [
        "console=ttyS0 loglevel=5",
        "root=root rootfstype=virtiofs rw",
        "oops=panic panic=-1",
        # Debian's hardening and self-tests are slow under emulation and protect nothing here.
        "mitigations=off cryptomgr.notests initcall_blacklist=load_system_certificate_list",
        # virtiofsd writes to the guest's page cache from another process, but TCG drops its translations of a page only
        # when a virtual CPU writes to the page: the previous code of a reused page would still run. So the guest's
        # kernel zeroes each page that it allocates, before a file is read into it.
        f"init_on_alloc={'0' if machine.accel == 'kvm' else '1'}",
        # On a busy host emulated timers are late, and the kernel's timer check would panic.
        "tsc=reliable no_timer_check",
        # sched_ext ejects a scheduler when one of these fires, and an emulated CPU can stall for seconds.
        "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=300",
        machine.append,
        f"init=/usr/bin/python3 -- -E -S {machine.start}",
    ]
    return " ".join(word for word in words if word)
