# SPDX-License-Identifier: Apache-2.0
"""The table of hints between real processes: ghOSt's prio_table_test by name, and cases that it does not have."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from ghostbpf.hints import ClassFlags, Hints, Item, ItemFlags, NotOwner, admit, records, stream
from ghostbpf.loaders.capabilities import keep_only
from ghostbpf.loaders.errors import BpfError, GhostError, PermissionMissing
from ghostbpf.loaders.link import create_map
from ghostbpf.loaders.object import MapDef

ITEMS = 256
SLOTS = 32


@pytest.fixture
def path(bpffs: Path) -> Iterator[Path]:
    """The pin of a table of ITEMS items."""
    with Hints.create(bpffs / "hints", items=ITEMS, classes=8) as hints:
        assert hints.header.slots == SLOTS
        yield bpffs / "hints"


@pytest.fixture
def hints(path: Path) -> Iterator[Hints]:
    """The table as its reader opens it."""
    with Hints.open(path) as opened:
        assert opened.updates() == []
        yield opened


class Processes:
    """Child processes that end with the test."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def start(self, body: Callable[[], object]) -> int:
        """Fork a process that runs ``body``; it exits with an error if ``body`` raises."""
        if not (pid := os.fork()):
            status = 1
            try:
                body()
                status = 0
            finally:
                os._exit(status)
        self._pids.append(pid)
        return pid

    def end(self, pid: int) -> int:
        """Wait for its end; returns its exit code, negative for a signal."""
        self._pids.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def running(self) -> bool:
        """Whether any process has not ended; AssertionError if one has failed."""
        for pid in list(self._pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._pids.remove(pid)
                assert status == 0
        return bool(self._pids)

    def kill(self) -> None:
        """Kill all processes."""
        for pid in list(self._pids):
            os.kill(pid, signal.SIGKILL)
            self.end(pid)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """``processes.start(body)``; all end with the test."""
    made = Processes()
    yield made
    made.kill()


def as_other(processes: Processes, path: Path, body: Callable[[Hints], object]) -> None:
    """Run ``body`` in another process, with a table that it opens, to its end."""

    def run() -> None:
        with Hints.open(path) as hints:
            body(hints)

    assert processes.end(processes.start(run)) == 0


def follow(hints: Hints, seen: dict[int, Item], processes: Processes) -> Iterator[tuple[int, Item]]:
    """Read updates until every process has ended and none is left; ``seen`` gets the last of each item."""
    for running in itertools.chain(iter(processes.running, False), (False,)):
        for index, item in hints.updates():
            seen[index] = item
            yield index, item
        if not running:
            return


def test_owner(hints: Hints, path: Path, processes: Processes) -> None:
    told, tell = os.pipe()
    ended, end = os.pipe()

    def own(theirs: Hints) -> None:
        theirs.set_item(3, tid=33)
        theirs.set_class(2, one_shot=True, qos=1)
        os.write(tell, b"!")
        os.close(end)
        os.read(ended, 1)

    def run() -> None:
        with Hints.open(path) as theirs:
            own(theirs)

    owner = processes.start(run)
    os.read(told, 1)
    assert hints.item(3) == (owner, 33, 0, 1, 0, hints.updates()[0][1].updated_ns)
    for change in (lambda: hints.set_item(3, tid=1), lambda: hints.set_runnable(3, False)):
        with pytest.raises(NotOwner, match=f"scheduling item 3 belongs to process {owner}"):
            change()
    with pytest.raises(NotOwner, match=f"work class 2 belongs to process {owner}"):
        hints.set_class(2)
    assert hints.updates() == []
    hints.set_item(4, tid=44)
    hints.set_class(2, repeating=True, period_ns=5, take=True)
    os.close(end)
    assert processes.end(owner) == 0
    hints.set_item(3, tid=55)
    assert [(item.owner, item.tid) for _, item in hints.updates()] == [(os.getpid(), 44), (os.getpid(), 55)]


def test_simple_enqueue_then_dequeue(hints: Hints, path: Path, processes: Processes, rng: Random) -> None:
    order = list(range(ITEMS))
    for _ in range(10):
        rng.shuffle(order)
        as_other(processes, path, lambda theirs: [theirs.set_item(i, tid=1 + i, take=True) for i in order])
        assert [(index, item.tid) for index, item in hints.updates()] == [(index, 1 + index) for index in order]
        assert hints.updates() == []


def test_capacity_overflow(hints: Hints, path: Path, processes: Processes) -> None:
    """More updates than slots: each item is reported, although later entries overwrite most of its own."""

    def update(theirs: Hints) -> None:
        for turn in range(1, 4):
            for index in range(ITEMS):
                theirs.set_item(index, tid=1 + index, deadline_ns=turn)

    as_other(processes, path, update)
    assert [(index, item.deadline_ns) for index, item in hints.updates()] == [(index, 3) for index in range(ITEMS)]
    assert hints.updates() == []


def test_one_slot_overflows_and_no_other_item_is_looked_at(hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    rescan = stream.Reader._rescan_slot

    def noted(reader: stream.Reader, slot: int, everything: bool) -> list[int]:
        looked_at.append(slot)
        return rescan(reader, slot, everything)

    monkeypatch.setattr(stream.Reader, "_rescan_slot", noted)
    for index in (5, 5 + SLOTS, 5 + 3 * SLOTS):
        hints.set_item(index, tid=1)
    assert [index for index, _ in hints.updates()] == [5, 5 + SLOTS, 5 + 3 * SLOTS]
    assert looked_at == [5]


def test_contention_overflow(hints: Hints, path: Path, processes: Processes) -> None:
    """Processes update items of the same slot without a pause: the last update of each is reported."""
    per_slot = ITEMS // SLOTS

    def update(index: int) -> None:
        with Hints.open(path) as theirs:
            for turn in range(1, 1001):
                theirs.set_item(index, tid=1 + index, deadline_ns=turn)

    for place in range(per_slot):
        processes.start(lambda place=place: update(7 + place * SLOTS))
    seen: dict[int, Item] = {}
    for _ in follow(hints, seen, processes):
        pass
    assert {index: item.deadline_ns for index, item in seen.items()} == {
        7 + place * SLOTS: 1000 for place in range(per_slot)
    }


def test_stress_threads(hints: Hints, path: Path, processes: Processes) -> None:
    """Threads of several processes, each with its own items."""

    def update(first: int) -> None:
        with Hints.open(path) as theirs:

            def one(index: int) -> None:
                for turn in range(1, 201):
                    theirs.set_item(index, tid=1 + index, deadline_ns=turn)

            threads = [threading.Thread(target=one, args=(index,)) for index in range(first, first + 8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    for first in range(0, 32, 8):
        processes.start(lambda first=first: update(first))
    seen: dict[int, Item] = {}
    for _ in follow(hints, seen, processes):
        pass
    assert {index: (item.tid, item.deadline_ns) for index, item in seen.items()} == {
        index: (1 + index, 200) for index in range(32)
    }


def test_stress_ordering(hints: Hints, path: Path, processes: Processes) -> None:
    """No update is reported before the one it follows, and the last is never lost."""
    rounds = 3000

    def update(first: int) -> None:
        with Hints.open(path) as theirs:
            for turn in range(1, rounds + 1):
                theirs.set_item(first + turn % 5, tid=1, deadline_ns=turn)

    for first in (0, 100):
        processes.start(lambda first=first: update(first))
    seen: dict[int, Item] = {}
    last = {0: 0, 100: 0}
    for index, item in follow(hints, seen, processes):
        first = index - index % 100
        assert item.deadline_ns > last[first] - 5, "it is not older than the last five"
        last[first] = max(last[first], item.deadline_ns)
    assert last == {0: rounds, 100: rounds}
    assert sorted(item.deadline_ns for item in seen.values()) == sorted(2 * list(range(rounds - 4, rounds + 1)))


def test_no_item_is_ever_torn(hints: Hints, path: Path, processes: Processes) -> None:
    def update() -> None:
        with Hints.open(path) as theirs:
            for turn in itertools.count():
                theirs.set_item(9, tid=1 + turn, work_class=turn % 8, runnable=bool(turn % 2), deadline_ns=turn << 20)

    processes.start(update)
    whole = 0
    while whole < 20_000:
        if (item := hints.item(9)) is None or not item.tid:
            continue
        turn = item.tid - 1
        assert (item.work_class, item.runnable, item.deadline_ns) == (turn % 8, bool(turn % 2), turn << 20)
        whole += 1


#: The part of an update that an owner has done at each of its fences.
STEPS = ("owned", "odd", "filled", "even", "in its slot")


@pytest.mark.parametrize("step", STEPS)
def test_owner_that_dies_while_it_writes_blocks_no_other_process(
    hints: Hints, path: Path, processes: Processes, step: str
) -> None:
    hints.set_item(9, tid=1, deadline_ns=1)
    hints.set_item(10, tid=1)
    assert len(hints.updates()) == 2
    reading = 2

    def die() -> None:
        fences = itertools.count()

        def fence() -> None:
            if next(fences) == reading + STEPS.index(step):
                os.kill(os.getpid(), signal.SIGKILL)

        with Hints.open(path) as theirs:
            records.fence = stream.fence = fence  # type: ignore[assignment]
            theirs.set_item(9, tid=2, deadline_ns=2, take=True)

    assert processes.end(processes.start(die)) == -signal.SIGKILL
    item = hints.item(9)
    if step in ("odd", "filled"):
        assert item is None
    else:
        assert item is not None
        assert (item.tid, item.deadline_ns) == ((1, 1) if step == "owned" else (2, 2))
    assert hints.updates() == []
    hints.set_item(10, tid=2)
    assert [index for index, _ in hints.updates()] == ([9, 10] if step == "in its slot" else [10])
    hints.set_item(9, tid=3)
    assert [(index, item.tid) for index, item in hints.updates()] == [(9, 3)]


def test_work_class_changes_come_as_all_items_in_use(hints: Hints) -> None:
    for index in (1, 2, 40):
        hints.set_item(index, tid=index)
    hints.set_item(2, tid=0)
    assert [index for index, _ in hints.updates()] == [1, 40]
    hints.set_class(3, repeating=True, qos=2, exectime_ns=10, period_ns=20)
    assert hints.work_class(3) == (os.getpid(), ClassFlags.REPEATING, 2, 10, 20)
    assert (hints.work_class(3).repeating, hints.work_class(3).one_shot) == (True, False)
    assert hints.work_class(4) == (0, 0, 0, 0, 0)
    assert [index for index, _ in hints.updates()] == [1, 40]
    assert hints.updates() == []


def test_freed_item_comes_once_more(hints: Hints) -> None:
    hints.set_item(5, tid=5)
    hints.updates()
    hints.set_item(5, tid=0)
    assert [(index, item.tid) for index, item in hints.updates()] == [(5, 0)]
    hints.set_item(5, tid=0)
    assert hints.updates() == []


def test_next_reader_begins_with_every_item_in_use(hints: Hints, path: Path) -> None:
    for index in (50, 3, 200):
        hints.set_item(index, tid=1 + index, deadline_ns=index)
    hints.set_item(7, tid=1)
    hints.set_item(7, tid=0)
    hints.updates()
    with Hints.open(path) as second:
        assert [(index, item.deadline_ns) for index, item in second.updates()] == [(50, 50), (3, 3), (200, 200)]
        assert second.updates() == []
        hints.set_runnable(3, False)
        assert second.updates() == hints.updates() == [(3, hints.item(3))]


def test_missing_items_and_invalid_values_are_refused(hints: Hints, path: Path, bpffs: Path) -> None:
    for index in (-1, ITEMS):
        with pytest.raises(IndexError, match=f"no scheduling item {index}: the table has 0 to {ITEMS - 1}"):
            hints.set_item(index, tid=1)
        with pytest.raises(IndexError):
            hints.item(index)
    with pytest.raises(IndexError, match="no work class 8: the table has 0 to 7"):
        hints.work_class(8)
    with pytest.raises(ValueError, match="no work class 8: the table has 0 to 7"):
        hints.set_item(0, tid=1, work_class=8)
    with pytest.raises(ValueError, match="not both"):
        hints.set_class(0, one_shot=True, repeating=True)
    with pytest.raises(ValueError, match="needs a period_ns"):
        hints.set_class(0, repeating=True)
    for wrong in ({"tid": -1}, {"tid": 1 << 32}, {"tid": 1, "deadline_ns": -1}, {"tid": 1, "deadline_ns": 1 << 64}):
        with pytest.raises(ValueError, match="scheduling item 3: "):
            hints.set_item(3, **wrong)
        assert hints.item(3) == (0,) * 6
    with pytest.raises(ValueError, match="work class 3: "):
        hints.set_class(3, one_shot=True, qos=-1)
    with pytest.raises(GhostError, match="scheduling item 3 is not in use"):
        hints.set_runnable(3, True)
    with pytest.raises(BpfError, match="File exists"):
        Hints.create(path)
    with pytest.raises(ValueError, match="0 items"):
        Hints.create(bpffs / "none", items=0)
    assert hints.updates() == []


def test_invalid_records_of_an_application_are_skipped(hints: Hints) -> None:
    hints._items.write(1, 5, 8, 0xFF, 1, 1)
    hints._stream.announce(1, 2)
    assert [(index, item.work_class, item.flags) for index, item in hints.updates()] == [(1, 0, ItemFlags.RUNNABLE)]
    for flags, period_ns in ((3, 5), (4, 5), (2, 0)):
        hints._classes.write(1, flags, 7, 7, period_ns)
        assert hints.work_class(1) == (os.getpid(), 0, 0, 0, 0)


def test_map_that_is_not_a_hints_table_is_refused(bpffs: Path) -> None:
    for name, flags, size in (("plain", 0, 64), ("mapped", 1 << 10, 64), ("larger", 1 << 10, 128)):
        with create_map(MapDef(name, 2, 4, size, 8, flags, 0, 0, 0)) as made:
            made.pin(bpffs / name)
        with pytest.raises(GhostError, match=f"map {name} is not a table of hints"):
            Hints.open(bpffs / name)


def test_path_is_where_run_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTBPF_HINTS", raising=False)
    with pytest.raises(GhostError, match="GHOSTBPF_HINTS is not in the environment"):
        Hints.open()
    monkeypatch.setenv("GHOSTBPF_HINTS", str(path))
    with Hints.open() as hints:
        assert len(hints) == ITEMS


def test_descriptor_lets_another_user_write(hints: Hints, path: Path, processes: Processes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def write() -> None:
        os.chdir(path.parent)
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(BpfError, match="Permission denied"):
            Hints.open(path.name)
        _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
        with Hints.from_fd(fd) as passed:
            passed.set_item(2, tid=os.getpid())

    pid = processes.start(write)
    socket.send_fds(ours, [b"!"], [hints.fileno()])
    assert processes.end(pid) == 0
    assert [(index, item.tid) for index, item in hints.updates()] == [(2, pid)]


@pytest.fixture
def open_bpffs() -> Iterator[Path]:
    """A bpffs whose directories any user may traverse."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        done = subprocess.run(["mount", "-t", "bpf", "bpf", directory], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a bpf: {done.stderr.strip()}")
        yield Path(directory)
        subprocess.run(["umount", "-l", directory], check=True)


def write_as(processes: Processes, path: Path, uid: int, gid: int) -> int:
    """The errno of a process of that user and group that opens the table at ``path`` and writes; 0 if it can."""

    def write() -> None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        try:
            with Hints.open(path) as hints:
                hints.set_item(0, tid=os.getpid())
        except BpfError as error:
            os._exit(error.errno)

    return processes.end(processes.start(write))


def test_only_admitted_users_can_write(root: None, open_bpffs: Path, processes: Processes) -> None:
    path = open_bpffs / "ghostbpf" / "enclave_1" / "hints"
    for directory in (path.parent.parent, path.parent):
        directory.mkdir(0o700)
    with Hints.create(path, items=8) as hints:
        assert write_as(processes, path, 65534, 65534) == errno.EACCES
        admit(path, uid=65534)
        assert write_as(processes, path, 65534, 65534) == 0
        assert write_as(processes, path, 65533, 65533) == errno.EACCES
        admit(path, gid=12345)
        assert write_as(processes, path, 65533, 12345) == 0
        assert write_as(processes, path, 65533, 12346) == errno.EACCES
        assert [index for index, _ in hints.updates()] == [0]


def test_users_without_cap_chown_admit_no_user(root: None, open_bpffs: Path, processes: Processes) -> None:
    path = open_bpffs / "ghostbpf" / "enclave_1" / "hints"
    for directory in (path.parent.parent, path.parent):
        directory.mkdir(0o700)

    def refused(missing: str, *kept: str) -> None:
        def run() -> None:
            keep_only(*kept)
            with pytest.raises(PermissionMissing, match=f"without {missing}$"):
                admit(path, uid=65534, gid=65534)

        assert processes.end(processes.start(run)) == 0

    Hints.create(path, items=8).close()
    refused("CAP_CHOWN")
    assert [entry.stat().st_mode & 0o777 for entry in (path.parent.parent, path.parent)] == [0o700, 0o700]
    assert path.stat().st_uid == 0
    os.chown(path, 65534, -1)
    refused("CAP_FOWNER", "CAP_CHOWN")


def test_closed_directory_admits_no_user(hints: Hints, path: Path) -> None:
    before = path.stat()
    with pytest.raises(GhostError, match="is closed to other users") as error:
        admit(path, uid=65534)
    assert error.value.hint is not None
    assert "chmod o+x" in error.value.hint
    assert path.stat() == before


def test_closed_table_leaves_nothing_open(path: Path, open_fds: Callable[[], dict[int, str]]) -> None:
    def held() -> tuple[dict[int, str], int]:
        return open_fds(), Path("/proc/self/maps").read_text().count("bpf-map")

    gc.collect()  # tables of other tests
    before = held()
    hints = Hints.open(path)
    hints.set_item(0, tid=1)
    hints.updates()
    assert held()[1] == before[1] + 1
    hints.close()
    assert held() == before
