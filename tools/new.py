# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf new NAME``: write a small package with a complete, working policy as a starting point."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path
from string import Template

import click

from ..loaders.errors import GhostError
from ..schedulers.core import constant
from ..schedulers.registry import POLICIES

_TEMPLATES = Path(__file__).with_name("templates")
#: Valid as a Python module, as a project of the packaging tools, and as a policy in the kernel.
_NAME = re.compile(r"[A-Za-z](\w*[A-Za-z0-9])?", re.ASCII)

_NEXT_STEPS = """\
{here} holds a working policy. Run it, change it, and run it again:
  sudo {ghostbpf} run {here}/{name}.py -- sleep 1
Install it, so that ghostbpf knows it by its name; later changes take effect at once:
  {pip} install -e {here}
  sudo {ghostbpf} run {name} -- sleep 1"""


class BadName(GhostError):
    """``name`` is not valid as the name of a policy."""

    exit_status = 2

    def __init__(self, name: str, why: str, hint: str):
        super().__init__(f'a policy cannot be called "{name}": {why}', hint=hint)
        self.name = name


@click.command(
    epilog="\b\nExamples:\n  ghostbpf new my_policy                 write ./my_policy\n"
    "  sudo ghostbpf run my_policy/my_policy.py -- make -j8"
)
@click.argument("name")
@click.option(
    "--dir",
    "where",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Where to make the new directory.",
)
def command(name: str, where: Path) -> None:
    """Write a Python package with a policy called NAME, in a new directory NAME.

    The policy works as written; its comments say what to change.
    """
    check(name)
    try:
        (where / name).mkdir()
        for template, file in (("policy.py.in", f"{name}.py"), ("pyproject.toml.in", "pyproject.toml")):
            text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(name=name)
            (where / name / file).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise GhostError(f"{where / name} is there already", hint="take another name, or --dir") from None
    except OSError as error:
        raise GhostError(f"cannot write {where / name}: {error.strerror}", hint="--dir with one of yours") from None
    programs = {program: _beside_python(program) for program in ("ghostbpf", "pip")}
    click.echo(_NEXT_STEPS.format(here=where / name, name=name, **programs))


def check(name: str) -> None:
    """Raise BadName unless ``name`` is valid for a new policy and its module."""
    longest = constant("POLICY_NAME_LEN") - 1
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise BadName(name, "it is no name of a Python module", "letters, digits and _, like my_policy")
    if len(name) > longest:
        raise BadName(name, f"it is longer than {longest} characters", f"for example {name[:12].rstrip('_')}")
    if name in POLICIES:
        raise BadName(name, "there is such a policy", f"for example my_{name}; ghostbpf policies lists those there are")
    if importlib.util.find_spec(name):
        raise BadName(name, "there is such a Python module", f"for example my_{name}")


def _beside_python(program: str) -> str:
    """The path of ``program`` in the environment of this Python; its name alone if it is somewhere else."""
    path = Path(sys.executable).with_name(program)
    return str(_shorter(path)) if path.exists() else program


def _shorter(path: Path) -> Path:
    """``path`` relative to the current directory, if it is below that."""
    return path.relative_to(os.getcwd()) if path.is_relative_to(os.getcwd()) else path
