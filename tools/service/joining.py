# SPDX-License-Identifier: Apache-2.0
"""Tasks that join enclaves by rule while the service runs: a thread for each rule, beside the service's own loop.

A thread waits where the loop must not: for the lock on enclaves, which another command may hold for as long as it
compiles a policy.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from ...loaders.errors import GhostError, KernelUnsupported, PermissionMissing
from ...schedulers.auto_join import AutoJoin, Outcome
from ...schedulers.enclave import Enclaves
from ...schedulers.errors import NoSuchEnclave
from ...schedulers.processes import Rule
from .plan import Wanted, rules_of

#: Time between two scans, in seconds.
_PERIOD_S = 1.0
_END_S = 2.0


class Joiner:
    """A thread that moves tasks into enclave ``id`` by ``rule`` until stop(), or until the enclave is gone."""

    def __init__(self, id: int, rule: Rule, report: Callable[[int, Outcome | GhostError], None]) -> None:
        self.id, self._rule, self._report = id, rule, report
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name=f"join-{id}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still moves tasks."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Tell it to end; it may wait for a lock until then."""
        os.eventfd_write(self._stop, 1)

    def close(self, timeout_s: float = 0) -> bool:
        """Forget it if it has ended, or does so in time; whether it has."""
        self._thread.join(timeout_s)
        if not self.is_alive:
            os.close(self._stop)
        return not self.is_alive

    def _run(self) -> None:
        from ...schedulers.process_events import ProcessEvents  # imported late: pyroute2 takes long

        try:
            with contextlib.ExitStack() as opened:
                events = None
                # Without events, all tasks are scanned each period.
                with contextlib.suppress(KernelUnsupported, PermissionMissing):
                    events = opened.enter_context(ProcessEvents())
                joining = AutoJoin(Enclaves.find(self.id), self._rule, events, period=_PERIOD_S)
                for outcome in joining.follow(self._stop):
                    self._report(self.id, outcome)
        except NoSuchEnclave:
            pass  # the service makes it again, and starts another thread
        except GhostError as error:
            self._report(self.id, error)


class Joiners:
    """The threads for all rules of a file."""

    def __init__(self, report: Callable[[int, Outcome | GhostError], None]) -> None:
        self._report = report
        self._joiners: dict[tuple[int, Rule], Joiner] = {}
        self._ending: list[Joiner] = []

    def keep(self, wanted: Wanted) -> None:
        """Have one live thread for each rule of ``wanted``, and no other."""
        rules = {(id, rule) for id, own in rules_of(wanted).items() for rule in own}
        for key in [key for key, one in self._joiners.items() if key not in rules or not one.is_alive]:
            self._ending.append(self._joiners.pop(key))
            self._ending[-1].stop()
        self._ending = [one for one in self._ending if not one.close()]
        for id, rule in rules - self._joiners.keys():
            self._joiners[id, rule] = Joiner(id, rule, self._report)

    def stop(self) -> None:
        """End all of them, and give those that wait for a lock some time."""
        self.keep({})
        for one in self._ending:
            one.close(_END_S)
