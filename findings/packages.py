# SPDX-License-Identifier: Apache-2.0
"""Installs pinned public packages in a directory, for the scripts in this directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

SUITE = "trixie"


def debian_tree(directory: Path, *pins: str) -> Path:
    """Unpacks ``pins`` (NAME=VERSION) of Debian's stable suite and their dependencies; exits with 2 on failure."""
    tree = directory / "tree"
    options = ["--variant=extract", f"--include={','.join(pins)}", '--aptopt=APT::Install-Recommends "false"']
    _install(["mmdebstrap", "--quiet", *options, SUITE, str(tree)], pins)
    return tree


def kernel_headers(tree: Path) -> Path:
    """One directory with the kernel headers in ``tree``: bcc takes one, Debian has two."""
    merged = tree / "headers"
    for part in ("common", "amd64"):
        (headers,) = tree.glob(f"usr/src/linux-headers-*-{part}")
        subprocess.run(["cp", "-rsf", f"{headers}/.", str(merged)], check=True)
    return merged


def run_python(tree: Path, script: str, *, limit_s: float = 300, **environment: object) -> str:
    """Runs ``script`` with the tree's Python, C library and modules; returns its output."""
    python = [
        str(tree / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        f"{tree}/usr/lib/x86_64-linux-gnu:{tree}/usr/lib/llvm-19/lib",
        str(tree / "usr/bin/python3"),
    ]
    done = subprocess.run(
        [*python, "-c", script],
        env={
            "PYTHONHOME": str(tree / "usr"),
            "PATH": "/usr/sbin:/usr/bin",
            **{name: str(value) for name, value in environment.items()},
        },
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode:
        _end(1, f"the script failed with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def pip_packages(directory: Path, *pins: str) -> Path:
    """Installs ``pins`` (NAME==VERSION) of PyPI in a directory for sys.path; exits with 2 on failure."""
    place = directory / "site"
    _install([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), *pins], pins)
    return place


def conclude(behaviour: str, *, holds: bool) -> NoReturn:
    """Ends the script, with 0 if ``behaviour`` still ``holds``, else with 1."""
    _end(int(not holds), f"{'unchanged' if holds else 'CHANGED'}: {behaviour}")


def _install(argv: list[str], pins: tuple[str, ...]) -> None:
    print("packages:", *pins, flush=True)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        _end(2, f"{argv[0]} failed with status {done.returncode}:\n{done.stdout[-2000:]}")


def _end(status: int, message: str) -> NoReturn:
    print(message)
    raise SystemExit(status)
