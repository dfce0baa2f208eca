# SPDX-License-Identifier: Apache-2.0
"""dpkg installs the Debian package in the guest, and its command runs without the checkout."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel_independent, pytest.mark.soak]

CHECKOUT = Path(__file__).resolve().parents[2]
_VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]

# The guest's root is read-only, and its kernel has no overlayfs. The shell's own mount namespace has copies in memory
# mounted over the directories that dpkg writes to.
_INSTALL = """
package=$1 copies=$2
for directory in /usr/bin /usr/lib/python3/dist-packages /usr/share /var/lib/dpkg; do
    mkdir -p "$copies$directory"
    cp -a "$directory/." "$copies$directory"
    mount --bind "$copies$directory" "$directory"
done
dpkg --install "$package" >&2
cd /
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """The package that ``make deb`` built on the host."""
    path = CHECKOUT / "dist" / f"ghostbpf_{_VERSION}_all.deb"
    assert path.exists(), f"{path} does not exist: run make deb"
    return path


def test_package_installs_and_schedules(package: Path, tmp_path: Path) -> None:
    # PYTHONPATH leads to the checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = """
        /usr/bin/ghostbpf --version
        python3 -c 'import ghostbpf.tools.cli as module; print(module.__file__)'
        /usr/bin/ghostbpf run biff --cpus 1-3 -- true
        /usr/bin/ghostbpf run biff --cpus 1-3 -- python3 -c 'import os; print(os.sched_getscheduler(0))'
        /usr/bin/ghostbpf run fifo_centralized --cpus 1-3 -- python3 -c 'import os; print(os.sched_getscheduler(0))'
    """
    argv = ["unshare", "--mount", "sh", "-ec", _INSTALL + command, "sh", str(package), str(tmp_path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = "/usr/lib/python3/dist-packages/ghostbpf/tools/cli.py"
    assert done.stdout.splitlines() == [f"ghostbpf {_VERSION}", module, "7", "7"]
