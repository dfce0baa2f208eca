# SPDX-License-Identifier: Apache-2.0
"""The programs with the workloads of our own, and what is preloaded into others.

``python -m ghostbpf.experiments.bench.programs`` compiles them beside their sources, for guests without a compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...hints import INCLUDE
from ...loaders.errors import GhostError
from ...loaders.source import BPF_DIR
from ..native_programs import Program

SOURCE = Path(__file__).parent / "native" / "loads.c"
_NATIVE = SOURCE.parent
_ROCKSDB = _NATIVE.parents[1] / "rocksdb" / "native"


def _loads() -> Program:
    return Program("loads", (SOURCE,), headers=(_NATIVE / "histogram.h",))


#: Its arrivals are those of the RocksDB experiment.
_MEMCACHED = Program(
    "memcached-load",
    (_NATIVE / "memcached.c",),
    (
        _NATIVE / "histogram.h",
        *(_ROCKSDB / f"{name}.h" for name in ("common", "load")),
        *(INCLUDE / "ghostbpf_hints.h", BPF_DIR / "hints.h"),
    ),
    ("-lm",),
)
_KEEP_POLICY = Program("keep_policy", (_NATIVE / "keep_policy.c",), is_preloaded=True)


def loads() -> Path:
    """Our own loads; see Program.path()."""
    return _loads().path()


def memcached_load() -> Path:
    """The server's load, which starts the server."""
    return _MEMCACHED.path()


def keep_policy() -> Path:
    """What makes threads keep their policy that ask for SCHED_OTHER."""
    return _KEEP_POLICY.path()


if __name__ == "__main__":
    try:
        for program in (_loads(), _MEMCACHED, _KEEP_POLICY):
            program.set_up()
    except GhostError as error:
        sys.exit(f"error: {error}")
