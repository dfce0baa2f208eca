# SPDX-License-Identifier: Apache-2.0
"""Where the core and the enclaves are pinned."""

from pathlib import Path

BPFFS = Path("/sys/fs/bpf")
ROOT = BPFFS / "ghostbpf"
CORE = ROOT / "core"

#: The reason of the last ejection, kept when the pins of the ejected core are removed.
LAST_EXIT = BPFFS / "ghostbpf_last_exit"
