# SPDX-License-Identifier: Apache-2.0
"""The experiments' programs in C: RocksDB under load, and the antagonist, which needs no library.

``python -m ghostbpf.experiments.rocksdb.programs`` compiles them beside their sources, for guests.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...hints import INCLUDE
from ...loaders.errors import GhostError
from ...loaders.source import BPF_DIR
from ..native_programs import Program

_NATIVE = Path(__file__).parent / "native"
_HEADERS = (_NATIVE / "common.h", INCLUDE / "ghostbpf_hints.h", BPF_DIR / "hints.h")

ANTAGONIST = Program("antagonist", (_NATIVE / "antagonist.c",), _HEADERS, ("-lm",))
ROCKSDB = Program(
    "rocksdb",
    tuple(_NATIVE / f"{name}.c" for name in ("rocksdb", "database", "load", "workers", "results")),
    (
        *_HEADERS,
        *(_NATIVE / f"{name}.h" for name in ("database", "load", "workers", "results")),
        _NATIVE.parents[1] / "bench" / "native" / "histogram.h",
    ),
    ("-lrocksdb", "-lm"),
    ("-lsnappy", "-llz4", "-lzstd", "-lbz2", "-lz", "-lstdc++", "-lm"),
    (Path("/usr/include/rocksdb/c.h"), "librocksdb-dev"),
)

if __name__ == "__main__":
    try:
        for program in (ANTAGONIST, ROCKSDB):
            program.set_up()
    except GhostError as error:
        sys.exit(f"error: {error}")
