# SPDX-License-Identifier: Apache-2.0
"""Applications in C and Python, and BPF, on one table, and the examples of docs/hints.md."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.hints import INCLUDE, ClassFlags, Hints, Item, NotOwner
from ghostbpf.loaders.link import Module, Target, create_map
from ghostbpf.loaders.object import MapDef

DOCUMENT = Path(__file__).parents[2] / "docs" / "hints.md"
ITEMS = 256


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language in the document, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def path(bpffs: Path) -> Path:
    """The pin of a table."""
    Hints.create(bpffs / "hints", items=ITEMS, classes=8).close()
    return bpffs / "hints"


@pytest.fixture
def hints(path: Path) -> Iterator[Hints]:
    """The table as its reader opens it."""
    with Hints.open(path) as opened:
        assert opened.updates() == []
        yield opened


@pytest.fixture(scope="session")
def cc(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``cc(text, *flags)`` compiles a C program; skip if there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler on this machine (apt install gcc)")

    def compile_text(text: str, *flags: str) -> Path:
        directory = tmp_path_factory.mktemp("cc")
        (directory / "app.c").write_text(text)
        strict = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", "-pthread", *flags)
        subprocess.run([compiler, *strict, "app.c", "-o", "app"], cwd=directory, check=True)
        return directory / "app"

    return compile_text


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


WRITER = r"""
#define _GNU_SOURCE
#include <ghostbpf_hints.h>
#include <pthread.h>
#include <stdio.h>

static struct ghostbpf_hints hints;
static int item, rounds;

static int say(uint32_t turn)
{
    return ghostbpf_hints_set_item(&hints, item, 1 + turn, turn % 8, turn % 2, (uint64_t)turn << 20);
}

static void *write_all(void *_)
{
    int error;

    for (int turn = 0; turn < rounds; turn++)
        while ((error = say(turn)))
            if (error != -EBUSY)
                abort();
    return _;
}

/* PATH ITEM ROUNDS THREADS: threads write the same item. Without threads: write it once, and print what came of it. */
int main(int argc, char **argv)
{
    int threads = argc == 5 ? atoi(argv[4]) : 0;
    pthread_t thread[16];

    if (ghostbpf_hints_open(&hints, argv[1]))
        return 1;
    item = atoi(argv[2]);
    rounds = atoi(argv[3]);
    if (!threads)
        printf("%d\n", say(rounds));
    for (int i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, write_all, NULL);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    ghostbpf_hints_close(&hints);
    return 0;
}
"""

DIES = r"""
#define _GNU_SOURCE
#include <ghostbpf_hints.h>

/* PATH ITEM: die while writing it. */
int main(int argc, char **argv)
{
    struct ghostbpf_hints hints;
    struct hint_item *item;
    uint32_t odd;

    if (argc != 3 || ghostbpf_hints_open(&hints, argv[1]))
        return 1;
    item = ghostbpf_hints_item_at(&hints, atoi(argv[2]));
    if (ghostbpf_hints_lock(&item->seq, &item->owner, &item->tid, &odd))
        return 2;
    item->tid = 1;
    return kill(getpid(), SIGKILL);
}
"""


@pytest.fixture(scope="session")
def writer(cc: Callable[..., Path]) -> Path:
    return cc(WRITER)


def check_whole(item: Item) -> None:
    """Check that all fields are of the same round of WRITER."""
    turn = item.tid - 1
    assert (item.work_class, item.runnable, item.deadline_ns) == (turn % 8, bool(turn % 2), turn << 20)


def test_threads_in_c_share_an_item_and_nothing_is_torn(hints: Hints, path: Path, writer: Path) -> None:
    lasting = subprocess.Popen([writer, path, "9", "100000000", "4"])
    try:
        whole = 0
        while whole < 20_000:
            if (item := hints.item(9)) is not None and item.tid:
                check_whole(item)
                whole += 1
    finally:
        lasting.kill()
        lasting.wait()

    rounds = 5000
    assert run(writer, path, 9, rounds, 4).returncode == 0
    ((index, item),) = hints.updates()
    check_whole(item)
    assert (index, item.tid) == (9, rounds), "the last writer wrote the last round"


def test_c_and_python_respect_who_owns_an_item(hints: Hints, path: Path, writer: Path) -> None:
    hints.set_item(3, tid=5)
    assert int(run(writer, path, 3, 7, 0).stdout) == -16
    hints.set_item(3, tid=0)
    assert int(run(writer, path, 3, 7, 0).stdout) == 0
    assert [(index, item.tid, item.deadline_ns) for index, item in hints.updates()] == [(3, 8, 7 << 20)]
    hints.set_item(3, tid=6)  # it has ended
    assert int(run(writer, path, ITEMS, 7, 0).stdout) == -22

    lasting = subprocess.Popen([writer, path, "4", "100000000", "1"])
    try:
        while not (item := hints.item(4)) or not item.tid:
            pass
        with pytest.raises(NotOwner, match=f"belongs to process {lasting.pid}"):
            hints.set_item(4, tid=1)
    finally:
        lasting.kill()
        lasting.wait()
    hints.set_item(4, tid=1)
    assert hints.updates()[-1] == (4, hints.item(4))


def test_c_takes_over_the_item_of_an_owner_in_c_that_died(
    hints: Hints, path: Path, writer: Path, cc: Callable[..., Path]
) -> None:
    dies = cc(DIES)
    for item in (5, 6):
        assert run(dies, path, item).returncode == -signal.SIGKILL
        assert hints.item(item) is None
    assert hints.updates() == []
    hints.set_item(6, tid=7)
    assert int(run(writer, path, 5, 1, 0).stdout) == 0
    assert [(index, item.tid) for index, item in hints.updates()] == [(6, 7), (5, 2)]


def test_c_refuses_a_map_that_is_not_a_hints_table(path: Path, bpffs: Path, writer: Path) -> None:
    assert run(writer, bpffs / "nowhere", 1, 1, 0).returncode == 1
    with create_map(MapDef("plain", 2, 4, 64, 8, 1 << 10, 0, 0, 0)) as plain:
        plain.pin(bpffs / "plain")
    assert run(writer, bpffs / "plain", 1, 1, 0).returncode == 1
    assert run(writer, path, 1, 1, 0).returncode == 0


REWRITES = r"""
#define _GNU_SOURCE
#include <ghostbpf_hints.h>
#include <stdio.h>

/* PATH SLOTS CLASSES ITEMS: rewrite the sizes, use the table that was open before, and print what opening it gives. */
int main(int argc, char **argv)
{
    struct ghostbpf_hints hints, later;
    struct hints_header *header, whole;

    if (argc != 5 || ghostbpf_hints_open(&hints, argv[1]))
        return 1;
    header = ghostbpf_hints_header(&hints);
    whole = *header;
    header->slots = strtoul(argv[2], NULL, 0);
    header->classes = strtoul(argv[3], NULL, 0);
    header->items = strtoul(argv[4], NULL, 0);
    if (ghostbpf_hints_set_item(&hints, 255, 5, 7, 0, 0) || ghostbpf_hints_set_class(&hints, 7, HINT_ONE_SHOT, 1, 0, 0))
        return 2;
    if (ghostbpf_hints_set_item(&hints, 256, 5, 7, 0, 0) != -EINVAL ||
        ghostbpf_hints_set_item(&hints, 0, 5, 8, 0, 0) != -EINVAL)
        return 2;
    printf("%d", ghostbpf_hints_open(&later, argv[1]));
    *header = whole;
    return 0;
}
"""


def test_sizes_that_a_member_rewrote_lead_c_nowhere_else(hints: Hints, path: Path, cc: Callable[..., Path]) -> None:
    rewrites = cc(REWRITES)
    whole = hints.header
    wrapped = 2**32 - 8  # the sum of all sizes is right in 32 bits
    refused = [
        (0, whole.classes + whole.slots // 8, ITEMS),
        (whole.slots + 1, whole.classes, ITEMS),
        (whole.slots, 0, ITEMS + whole.classes),
        (whole.slots, ITEMS + whole.classes, 0),
        (whole.slots, wrapped, ITEMS + whole.classes + 8),
    ]
    for sizes in refused:
        shown = run(rewrites, path, *sizes)
        assert (shown.returncode, shown.stdout) == (0, f"{-errno.EINVAL}"), sizes
    assert run(rewrites, path, whole.slots, whole.classes, ITEMS).stdout == "0"


def test_header_serves_cplusplus(cc: Callable[..., Path], tmp_path: Path) -> None:
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("no C++ compiler on this machine (apt install g++)")
    (tmp_path / "app.cc").write_text("typedef unsigned long long u64;\n" + DIES.replace("#define _GNU_SOURCE", ""))
    strict = ["-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
    subprocess.run([compiler, *strict, "-c", "app.cc"], cwd=tmp_path, check=True)


def test_python_examples_of_the_document_run(hints: Hints, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBPF_HINTS", str(path))
    names: dict[str, object] = {}
    exec(blocks("python")[0], names)
    assert hints.work_class(1) == (os.getpid(), ClassFlags.ONE_SHOT, 2, 500_000, 0)
    written = [hints.item(index) for index in range(4)]
    assert all(item and item.owner == os.getpid() and item.tid == 0 and item.updated_ns for item in written)
    shown = names["hints"]
    assert isinstance(shown, Hints)
    shown.close()


def test_c_examples_of_the_document_run(hints: Hints, path: Path, cc: Callable[..., Path]) -> None:
    app = cc(blocks("c")[0])
    assert run(app, GHOSTBPF_HINTS=str(path)).returncode == 0
    ((index, item),) = hints.updates()
    assert (index, item.work_class, item.runnable) == (7, 2, True)
    assert item.tid == item.owner
    assert hints.work_class(2)[1:] == (ClassFlags.REPEATING, 1, 500_000, 20_000_000)
    failed = run(app, GHOSTBPF_HINTS="/nowhere")
    assert (failed.returncode, failed.stderr) == (1, "hints: No such file or directory\n")


@pytest.fixture(scope="module")
def lookup(build: Callable[[str], object]) -> object:
    """A program that looks up the hints of its own task."""
    return build(
        """
        #include "hints.bpf.h"

        int look_up(u64 *ctx)
        {
            struct hint_class class;
            struct hint_item item;

            if (!hint_of((void *)bpf_get_current_task_btf(), &item))
                return 0;
            ctx[0] = item.deadline_ns;
            ctx[1] = hint_class_at(item.work_class, &class) ? class.qos : 0;
            return 1;
        }
        """
    )


def test_bpf_finds_the_item_of_a_task(hints: Hints, lookup: object) -> None:
    module = Module(lookup, maps={"hints": hints.map})  # type: ignore[arg-type]
    with module.load("look_up", Target.syscall()) as program:

        def found() -> tuple[int, ...] | None:
            result, context = program.run(bytes(16))
            return struct.unpack("2Q", context) if result else None

        me = threading.get_native_id()
        assert found() is None
        hints.set_class(2, one_shot=True, qos=7)
        hints.set_item(ITEMS - 1, tid=me, work_class=2, deadline_ns=5)
        assert found() == (5, 7)
        hints.set_item(0, tid=1)
        hints.set_runnable(ITEMS - 1, False, deadline_ns=6)
        assert found() == (6, 7)
        hints.set_item(ITEMS - 1, tid=1)
        assert found() is None
        hints.set_item(4, tid=me, deadline_ns=8)
        assert found() == (8, 0)
        hints.set_item(4, tid=0)
        assert found() is None
    module.close()


def test_application_in_a_pid_namespace_gets_no_table(path: Path, cc: Callable[..., Path]) -> None:
    app = cc(
        """
        #include <stdio.h>
        #include "ghostbpf_hints.h"

        int main(int argc, char **argv)
        {
            struct ghostbpf_hints hints;

            printf("%d", argc > 1 ? ghostbpf_hints_open(&hints, argv[1]) : 0);
            return 0;
        }
        """,
        "-D_GNU_SOURCE",
    )
    unshared = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshared, "true"], check=False).returncode:
        pytest.skip("no pid namespace can be made")
    outputs = [subprocess.run([*words, app, path], capture_output=True, check=True).stdout for words in ([], unshared)]
    assert outputs == [b"0", f"{-errno.EXDEV}".encode()]
