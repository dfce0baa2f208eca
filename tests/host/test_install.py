# SPDX-License-Identifier: Apache-2.0
"""A wheel has everything, also the kernel-side C; an editable install uses the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment in which the wheel is installed."""
    where = tmp_path_factory.mktemp("wheel")
    # A copy, since a build leaves files in the tree.
    tree = where / "tree"
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, text=True)
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((CHECKOUT / name).read_bytes())
    run = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(where), str(tree)]
    subprocess.run(run, check=True, capture_output=True)
    (wheel,) = where.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", where / "venv"], check=True)
    python = where / "venv" / "bin" / "python"
    # The dependencies are those of this environment; the test is of the wheel's own files.
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _python(python: Path, code: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.check_output([python, "-c", code], cwd=cwd, env=environment, text=True).strip()


def test_wheel_has_its_own_modules_and_c(wheel_python: Path, tmp_path: Path) -> None:
    found = _python(wheel_python, "from ghostbpf.loaders.source import BPF_DIR; print(BPF_DIR)", tmp_path)
    assert not Path(found).is_relative_to(CHECKOUT)
    brought = {path.relative_to(found) for path in Path(found).rglob("*.[ch]")}
    assert brought == {path.relative_to(CHECKOUT / "bpf") for path in (CHECKOUT / "bpf").rglob("*.[ch]")}


def test_wheel_installs_the_command(wheel_python: Path, tmp_path: Path) -> None:
    output = subprocess.check_output(
        [wheel_python.with_name("ghostbpf"), "policies", "--json"], cwd=tmp_path, text=True
    )
    assert '"policy": "biff"' in output


def test_wheel_writes_a_new_policy(wheel_python: Path, tmp_path: Path) -> None:
    subprocess.check_call([wheel_python.with_name("ghostbpf"), "new", "mine"], cwd=tmp_path)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"mine.py", "pyproject.toml"}


@pytest.mark.usefixtures("root", "bcc")
def test_wheel_compiles_its_tracer(wheel_python: Path, tmp_path: Path) -> None:
    code = (
        "from ghostbpf.loaders import compile; from ghostbpf.loaders.source import BPF_DIR;"
        "print(sorted(compile(BPF_DIR / 'tracers' / 'wakelat.bpf.c').functions))"
    )
    assert "wakelat_switch" in _python(wheel_python, code, tmp_path)


def test_editable_install_is_the_checkout(tmp_path: Path) -> None:
    path = _python(Path(sys.executable), "import ghostbpf.tools.cli as m; print(m.__file__)", tmp_path)
    assert Path(path).resolve() == CHECKOUT / "tools" / "cli.py"
