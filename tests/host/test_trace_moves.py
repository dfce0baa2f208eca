# SPDX-License-Identifier: Apache-2.0
"""Wakers and migrations: pairs and moves with known numbers."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from tracing import Task, be_fifo, only, run_trace, spin_until, tracing

ROUNDS = 200
WAKEUPS = 23
MOVES = 10


def total(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["count"] for row in rows)


def move_of(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[key] for key in ("tid", "comm", "from", "to", "reason", "count"))


def ping_pong(task: Callable[..., Task], cpu: int) -> tuple[Task, Task]:
    """Two tasks that exchange a byte ROUNDS times; on one CPU under SCHED_FIFO, so that each read blocks."""
    there, from_there = os.pipe()
    back, from_back = os.pipe()

    def serve() -> None:
        be_fifo()
        for _ in range(ROUNDS):
            os.write(from_there, b"!")
            os.read(back, 1)

    def answer() -> None:
        be_fifo()
        for _ in range(ROUNDS):
            os.read(there, 1)
            os.write(from_back, b"!")

    return task(serve, cpu=cpu, name="ping"), task(answer, cpu=cpu, name="pong")


def test_each_wakeup_is_reported_with_its_waker(task: Callable[..., Task]) -> None:
    inlet, outlet = os.pipe()
    reader = task(lambda: [os.read(inlet, 1) for _ in range(WAKEUPS)], name="reader")
    reader.start()
    reader.sleeps()
    with tracing("wakers", "-t", reader.pid) as traced:
        for _ in range(WAKEUPS):
            os.write(outlet, b"!")
            reader.sleeps()
        reader.finish()
    assert total(only(traced, waker=os.getpid(), wakee=reader.pid, wakee_comm="reader")) == WAKEUPS
    # It wakes the test once, when it is done. Other wakers are only interrupts while it ran.
    assert total(only(traced, waker=reader.pid, wakee=os.getpid())) <= 1
    assert all(reader.pid in (row["waker"], row["wakee"]) for row in traced)


def test_ping_pong_pair_wakes_each_other_once_a_round_and_moves_nowhere(
    task: Callable[..., Task], cpus: list[int]
) -> None:
    ping, pong = ping_pong(task, cpus[0])
    with tracing("wakers", "-p", ping.pid, "-n", 1000) as woken, tracing("migrations") as moved:
        before = ping.figures(), pong.figures()
        pong.start()
        pong.sleeps()
        ping.run()
        pong.finish()
        ping_blocked, pong_blocked = (
            (one.figures() - then).blocked for one, then in zip((ping, pong), before, strict=True)
        )
    # One more each: the task sleeps again when it is done.
    assert ping_blocked == pong_blocked == ROUNDS + 1
    assert total(only(woken, waker=pong.pid, wakee=ping.pid)) == ROUNDS
    assert total(only(woken, waker=ping.pid, wakee=pong.pid)) == ROUNDS
    assert not [row for row in moved.named("migrations") if row["tid"] in (ping.pid, pong.pid)]


def test_wakers_add_up_by_process_and_the_most_frequent_come_first(task: Callable[..., Task], cpus: list[int]) -> None:
    ping, pong = ping_pong(task, cpus[0])
    with tracing("wakers", "-P", "-n", 3) as traced:
        pong.start()
        ping.run()
        pong.finish()
    counts = [row["count"] for row in traced]
    assert len(counts) > 3, "JSON has all wakers"
    assert counts == sorted(counts, reverse=True)


def test_text_shows_the_most_frequent(cpus: list[int]) -> None:
    here, there = cpus[:2]
    moves = f"taskset -c {here} taskset -c {there} taskset -c {here} sleep 0.01"
    for tool in ("wakers", "migrations"):
        done = run_trace(tool, "-n", 2, "--", "sh", "-c", f"for i in 1 2 3 4 5 6; do {moves}; done")
        _, rule, *rows = done.stdout.split("\n\n")[0].splitlines()
        assert set(rule) == {"-", " "}
        assert len(rows) == 2


def test_task_that_changes_its_affinity_moves_as_often_for_it(task: Callable[..., Task], cpus: list[int]) -> None:
    here, there = cpus[:2]

    def move() -> None:
        for _ in range(MOVES):
            os.sched_setaffinity(0, {there})
            os.sched_setaffinity(0, {here})

    mover = task(move, cpu=here, name="mover")
    with tracing("migrations", "-t", mover.pid) as traced:
        mover.run()
    assert sorted(map(move_of, traced.named("migrations"))) == [
        (mover.pid, "mover", here, there, "affinity", MOVES),
        (mover.pid, "mover", there, here, "affinity", MOVES),
    ]
    assert sorted((row["from"], row["to"], row["count"]) for row in traced.named("matrix")) == [
        (here, there, MOVES),
        (there, here, MOVES),
    ]


def test_tasks_that_run_wait_or_sleep_move_when_others_change_their_affinity(
    task: Callable[..., Task], cpus: list[int]
) -> None:
    here, there = cpus[:2]
    stop = mmap.mmap(-1, 1)
    spinners = [task(lambda: spin_until(lambda: stop[0]), cpu=here) for _ in range(2)]
    sleeper = task(lambda: None, cpu=here)
    tasks = [*spinners, sleeper]
    with tracing("migrations", "-n", 1000) as traced:
        for spinner in spinners:
            spinner.start()
        for _ in range(MOVES):
            for one in tasks:
                os.sched_setaffinity(one.pid, {there})
            sleeper.run()
            for one in tasks:
                os.sched_setaffinity(one.pid, {here})
            sleeper.run()
        stop[0] = 1
        for spinner in spinners:
            spinner.finish()
    for one in tasks:
        moves = only(traced.named("migrations"), tid=one.pid)
        assert {row["reason"] for row in moves} == {"affinity"}
        assert total(only(moves, **{"from": here, "to": there})) == MOVES
        assert total(only(moves, **{"from": there, "to": here})) == MOVES


def test_new_task_that_starts_elsewhere_is_moved_by_its_fork(task: Callable[..., Task], cpus: list[int]) -> None:
    def work() -> None:
        # A SCHED_FIFO child is not put on a CPU that runs a task of its priority.
        be_fifo()
        for _ in range(8):
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)

    parent = task(work, name="parent")
    with tracing("migrations", "-c", "parent", "-n", 1000) as traced:
        parent.run()
    forks = only(traced.named("migrations"), reason="fork")
    assert 1 <= len(forks) <= 8
    assert all(row["count"] == 1 and row["from"] != row["to"] for row in forks)
    assert parent.pid not in {row["tid"] for row in forks}


@pytest.mark.parametrize("options", [(), ("--matrix",)], ids=["moves", "matrix"])
def test_matrix_of_cpus_is_drawn_under_the_moves_or_alone(cpus: list[int], options: tuple[str, ...]) -> None:
    here, there = cpus[:2]
    moves = f"taskset -pc {there} $$; taskset -pc {here} $$; taskset -pc {there} $$"
    done = run_trace("migrations", *options, "--", "taskset", "-c", here, "sh", "-c", moves)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["from\\to", str(here), str(there)] in lines
    assert (["tid", "comm", "from", "to", "reason", "count"] in lines) is (not options)
