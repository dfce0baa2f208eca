# SPDX-License-Identifier: Apache-2.0
"""The names of functions by their addresses, from bcc's symbol caches."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, Self

from ...loaders import libbcc
from ...loaders._libbpf import text as c_text
from ...loaders.declarations import declare, open_library
from ...schedulers import pids

_KERNEL = -1


class Symbols:
    """Looks up addresses in the kernel and in living processes."""

    def __init__(self) -> None:
        self._ffi = declare(
            """
            struct bcc_symbol { const char *name; const char *demangle_name; const char *module; uint64_t offset; };
            void *bcc_symcache_new(int pid, void *option);
            void bcc_free_symcache(void *cache, int pid);
            int bcc_symcache_resolve(void *cache, uint64_t address, struct bcc_symbol *symbol);
            void bcc_symbol_free_demangle_name(struct bcc_symbol *symbol);
            """
        )
        self._lib: Any = open_library(self._ffi, str(libbcc.library()))
        self._caches: dict[int, Any] = {}
        self._cached_name = functools.lru_cache(maxsize=1 << 16)(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid, cache in self._caches.items():
            self._lib.bcc_free_symcache(cache, pid)
        self._caches.clear()

    def kernel(self, address: int) -> str:
        """The kernel function at ``address``."""
        return self._cached_name(_KERNEL, address)

    def user(self, pid: int, address: int) -> str:
        """The function of process ``pid`` at ``address``."""
        return self._cached_name(pid, address)

    def _name(self, pid: int, address: int) -> str:
        if pid not in self._caches:
            # bcc reads /proc/PID, with the pid in this namespace. A process without one gets 0, which has no symbols.
            local = pid if pid == _KERNEL else pids.to_local([pid]).get(pid, 0)
            self._caches[pid] = self._lib.bcc_symcache_new(local, self._ffi.NULL)
        symbol: Any = self._ffi.new("struct bcc_symbol *")
        if self._lib.bcc_symcache_resolve(self._caches[pid], address, symbol) < 0:
            return self._unknown(symbol)
        name = symbol.demangle_name if symbol.demangle_name != self._ffi.NULL else symbol.name
        text = c_text(name)
        self._lib.bcc_symbol_free_demangle_name(symbol)
        return text

    def _unknown(self, symbol: Any) -> str:
        if symbol.module == self._ffi.NULL:
            return "[unknown]"
        module = c_text(symbol.module)
        return f"[{module.rpartition('/')[2]}]" if module else "[unknown]"
