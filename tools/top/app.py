# SPDX-License-Identifier: Apache-2.0
"""The screen of ``ghostbpf top``."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Event, Key, Paste
from textual.widgets import Static

from ...schedulers.launch import termination_signals
from ...schedulers.registry import POLICIES
from ..output import printable_lines
from . import changes, columns, sample
from .drawing import fit, has_blocks, sparkline
from .frame import Frame, History, TaskRow, between
from .health import core_lines, verdict
from .listing import Listing
from .questions import Choose, Confirm, Prompt, Question

_KEYS = "q:quit ?:keys /:filter s:sort f:follow w:policy c:CPUs a:add x:remove d:destroy"

_HELP = """\
move       arrows, PgUp, PgDn, Home, End; Tab: the other list
e, Enter   tasks of the next enclave, or of that under the cursor, or of all
/          filter tasks by words in name, state, TID or PID
s S        sort tasks by the next column, or the previous one; i inverts
f          follow the task under the cursor: its history
space      stop, and go on
w          swap the policy of the enclave under its list's cursor
c          change its CPUs
a          add processes to it
x          remove the process of the task under the cursor from its enclave
d          destroy the enclave, after a question
q, Ctrl-C  quit

CPUs:  3[##:   ] 45% e1 q2 NAME   CPU 3, of enclave 1, runs NAME; 2 wait
       # tasks of enclaves, : other classes
LATENCY    how long a task waited, on average, before it got a CPU"""


def shown(text: str) -> Text:
    """``text`` as it is: a str would be read as markup, and control characters would reach the terminal."""
    return Text(printable_lines(text))


class TopApp(App[None]):
    """The screen; it reads every ``interval`` seconds in a thread, so that keys are never late."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
Screen { background: ansi_default; color: ansi_default; }
Screen Static { height: auto; background: ansi_default; color: ansi_default; }
Screen Listing { background: ansi_default; color: ansi_default; scrollbar-size: 0 0; }
#tasks { height: 1fr; }
#away { height: 1fr; padding: 1 2; }
#title { text-style: bold; }
#question { border: round ansi_default; padding: 0 1; }
#question.-ascii { border: ascii ansi_default; }
#keys { text-style: reverse; height: 1; }
#note { max-height: 4; text-style: bold; }
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        # With priority, a key's action is done before the next key is looked at, which may be meant for a question, or
        # for the row to which the first one moves the cursor.
        Binding("up,k", "move(-1)", show=False, priority=True),
        Binding("down,j", "move(1)", show=False, priority=True),
        Binding("pageup", "page(-1)", show=False, priority=True),
        Binding("pagedown", "page(1)", show=False, priority=True),
        Binding("home,g", "move(-1000000)", show=False, priority=True),
        Binding("end,G", "move(1000000)", show=False, priority=True),
        Binding("tab,shift+tab", "other_list", show=False, priority=True),
        Binding("enter", "choose", show=False, priority=True),
        Binding("q,ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("question_mark,h,f1", "keys", show=False, priority=True),
        Binding("slash", "filter", show=False, priority=True),
        Binding("s", "sort(1)", show=False, priority=True),
        Binding("S", "sort(-1)", show=False, priority=True),
        Binding("i", "invert", show=False, priority=True),
        Binding("e", "next_enclave", show=False, priority=True),
        Binding("f", "follow", show=False, priority=True),
        Binding("space", "pause", show=False, priority=True),
        Binding("w", "swap", show=False, priority=True),
        Binding("c", "resize", show=False, priority=True),
        Binding("a", "add", show=False, priority=True),
        Binding("x", "remove", show=False, priority=True),
        Binding("d", "destroy", show=False, priority=True),
        Binding("escape", "forget", show=False, priority=True),
    ]

    def __init__(self, first: sample.Sample, interval: float, *, enclave: int | None, words: str, sort: str) -> None:
        # textual takes NO_COLOR out of the environment.
        self._colour = "NO_COLOR" not in os.environ
        super().__init__(ansi_color=True)
        self._interval = interval
        self._enclave, self._words, self._sort, self._inverted = enclave, words, sort, False
        self._paused, self._message = False, ""
        self._question: Question | None = None
        self._blocks = has_blocks()
        self._history = History()
        self._before = first
        self._frame: Frame = between(None, first)
        self._tasks: list[TaskRow] = []

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Listing("enclaves", colour=self._colour)
        yield Static(id="cpus")
        yield Static(id="which")
        yield Listing("tasks", colour=self._colour)
        yield Static(id="away")
        yield Static(id="question", classes="" if self._blocks else "-ascii")
        yield Static(id="note")
        yield Static(shown(_KEYS), id="keys")

    def on_mount(self) -> None:
        """Show the first sample, and begin to read others."""
        loop = asyncio.get_running_loop()
        for number in termination_signals() - {signal.SIGTSTP}:
            # The default action would leave the terminal in raw mode, without its cursor.
            loop.add_signal_handler(number, self.exit)
        self.query_one("#tasks", Listing).focus()
        self._show()
        self.run_worker(self._read(), exit_on_error=True)

    async def on_event(self, event: Event) -> None:
        """Give keys to the question, if there is one."""
        if self._question is None or not isinstance(event, (Key, Paste)) or getattr(event, "key", "") == "ctrl+c":
            await super().on_event(event)
        elif isinstance(event, Key):
            question, self._question = self._question, None
            if not question.press(event.key, event.character):
                self._question = question
            self._show()
        elif isinstance(self._question, Prompt):
            self._question.paste(event.text)
            self._show()

    async def _read(self) -> None:
        while True:
            began = time.monotonic()
            now = await asyncio.to_thread(sample.read)
            if not self._paused:
                # A core that was away begins anew.
                self._frame = between(self._before if self._before.state.state == "attached" else None, now)
                self._before = now
                self._history.add(self._frame)
                self._show()
            await asyncio.sleep(max(self._interval - (time.monotonic() - began), 0.02))

    def on_resize(self) -> None:
        """Lay everything out anew."""
        self._show()

    def _show(self) -> None:
        if not self.query("#keys"):
            return  # before compose(), or after the end
        frame, (width, height) = self._frame, self.size
        is_away = frame.state != "attached"
        clock = time.strftime("%H:%M:%S") + (" (stopped)" if self._paused else "")
        title = fit(columns.headline(frame), max(width - len(clock) - 1, 10))
        self._static("title").update(shown(f"{title} {clock}"))
        question = self._question
        is_covered = question is not None and question.covers
        for name in ("enclaves", "cpus", "which", "tasks"):
            self.query_one(f"#{name}").display = not is_away and not is_covered
        self._static("away").display = is_away and not is_covered
        self._static("question").display = question is not None
        if question is not None:
            self._static("question").update(shown("\n".join(fit(line, width - 4) for line in question.lines)))
        if is_away:
            self._static("away").update(shown("\n".join(core_lines(frame))))
        else:
            self._show_enclaves(width, height)
            self._static("cpus").update(
                shown("\n".join(columns.cpu_lines(frame.cpus, width, max(height // 6, 2), blocks=self._blocks)))
            )
            self._show_tasks(width)
        if self.focused is None and not (is_away or is_covered):
            self._listing("tasks").focus()  # a list that was hidden has lost it
        self._static("note").update(shown("\n".join(filter(None, [self._followed(width), self._message]))))

    def _static(self, name: str) -> Static:
        return self.query_one(f"#{name}", Static)

    def _listing(self, name: str) -> Listing:
        return self.query_one(f"#{name}", Listing)

    def _show_enclaves(self, width: int, height: int) -> None:
        rows = self._frame.enclaves
        shown_columns = columns.fitting(columns.enclave_columns(self._history, blocks=self._blocks), width)
        listing = self._listing("enclaves")
        listing.styles.height = 1 + min(max(len(rows), 1), max(height // 6, 2))
        listing.fill(
            columns.heading(shown_columns),
            [row.id for row in rows],
            lambda number: (
                columns.line(shown_columns, rows[number]),
                "row" if verdict(rows[number]).is_well else "bad",
            ),
        )

    def _show_tasks(self, width: int) -> None:
        chosen = columns.select_tasks(self._frame.tasks, self._enclave, self._words)
        rows = self._tasks = columns.sort_tasks(chosen, self._sort, inverted=self._inverted)
        shown_columns = columns.fitting(columns.TASK_COLUMNS, width)
        which = f"{len(rows)} of {len(self._frame.tasks)} tasks"
        which += f" of enclave {self._enclave}" if self._enclave is not None else ""
        which += f' with "{self._words}"' if self._words else ""
        which += f", by {self._sort}" + (", inverted" if self._inverted else "")
        self._static("which").update(shown(which))
        self._listing("tasks").fill(
            columns.heading(shown_columns),
            [row.tid for row in rows],
            lambda number: (
                columns.line(shown_columns, rows[number]),
                "busy" if rows[number].state == "running" else "row",
            ),
        )

    def _followed(self, width: int) -> str:
        tid, history = self._history.followed, self._history
        if tid is None:
            return ""
        if (row := self._frame.task(tid)) is None:
            return f"task {tid} has ended, or left its enclave (f: follow another)"
        room = max((width - 60) // 2, 8)
        ran = sparkline(history.cpu_share, room, 1.0, blocks=self._blocks)
        waited = sparkline(history.wait_share, room, 1.0, blocks=self._blocks)
        where = f" on {row.queue_name}" if row.queue else ""
        return (
            f"{tid} {row.comm}: CPU {ran} {(row.cpu_share or 0) * 100:.0f}%  "
            f"wait {waited} {(row.wait_share or 0) * 100:.0f}%  {row.state}{where}"
        )

    def _say(self, message: str) -> None:
        self._message = message
        self._show()

    def action_keys(self) -> None:
        """Show what the keys do."""
        self._ask(Question(_HELP))

    def action_forget(self) -> None:
        """Take away the last message."""
        self._say("")

    def action_pause(self) -> None:
        """Stop the picture, or let it go on."""
        self._paused = not self._paused
        self._show()

    def action_sort(self, step: int) -> None:
        """Sort by another of the visible columns."""
        names = columns.SORT_NAMES[: len(columns.fitting(columns.TASK_COLUMNS, self.size.width))]
        at = names.index(self._sort) if self._sort in names else 0
        self._sort = names[(at + step) % len(names)]
        self._show()

    def action_invert(self) -> None:
        """Turn the order round."""
        self._inverted = not self._inverted
        self._show()

    def action_filter(self) -> None:
        """Ask for words, and show tasks with them while they are written."""

        def take(words: str) -> None:
            self._words = words

        question = "show tasks with these words (name, state, TID, PID); Escape: as before"
        self._ask(Prompt(question, take, self._words, take))

    def action_next_enclave(self) -> None:
        """Show the tasks of the next enclave; after the last one, of all."""
        ids = [None, *(row.id for row in self._frame.enclaves)]
        self._enclave = ids[(ids.index(self._enclave) + 1) % len(ids)] if self._enclave in ids else None
        self._show()

    def action_move(self, step: int) -> None:
        """Move the cursor of the list that has the keys."""
        if isinstance(self.focused, Listing):
            self.focused.move(step)

    def action_page(self, step: int) -> None:
        """Move that cursor by screens."""
        if isinstance(self.focused, Listing):
            self.focused.page(step)

    def action_other_list(self) -> None:
        """Give the keys to the other list."""
        is_tasks = self.focused is self._listing("tasks")
        self.screen.set_focus(self._listing("enclaves" if is_tasks else "tasks"))

    def action_choose(self) -> None:
        """Show the tasks of the enclave under the cursor, or follow the task."""
        if self.focused is self._listing("tasks"):
            self.action_follow()
        elif isinstance(key := self._listing("enclaves").key, int):
            self._enclave = None if self._enclave == key else key
            self._show()

    def action_follow(self) -> None:
        """Follow the task under the cursor, or no longer."""
        tid = self._listing("tasks").key
        self._history.follow(tid if isinstance(tid, int) and tid != self._history.followed else None)
        self._show()

    def _chosen_enclave(self) -> int | None:
        key = self._listing("enclaves").key if self._frame.state == "attached" else None
        if not isinstance(key, int):
            self._say("there is no enclave\n  try: sudo ghostbpf run biff --cpus 2-3 --keep")
            return None
        return key

    def action_swap(self) -> None:
        """Ask for another policy."""
        if (id := self._chosen_enclave()) is None:
            return
        row = self._frame.enclave(id)
        self._ask(
            Choose(
                f"another policy for enclave {id}, now {row.policy if row is not None else '?'}",
                {name: policy.summary for name, policy in POLICIES.items()},
                lambda name: self._change(changes.swap(id, POLICIES[name])),
            )
        )

    def action_resize(self) -> None:
        """Ask for other CPUs."""
        if (id := self._chosen_enclave()) is None:
            return
        row = self._frame.enclave(id)
        now = row.cpus if row is not None else "?"
        self._ask_line(
            f"CPUs of enclave {id}, now {now}: a LIST like 0-3,6, or +LIST, or -LIST",
            lambda answer: changes.resize(id, answer),
        )

    def action_add(self) -> None:
        """Ask for processes to add."""
        if (id := self._chosen_enclave()) is not None:
            self._ask_line(
                f"add processes to enclave {id}: PIDs between spaces",
                lambda answer: changes.add(id, answer),
            )

    def _ask(self, question: Question) -> None:
        self._question = question
        self._message = ""
        self._show()

    def _ask_line(self, question: str, change: Callable[[str], changes.Change]) -> None:
        def take(answer: str) -> None:
            if answer.strip():
                self._change(change(answer.strip()))

        self._ask(Prompt(question, take))

    def action_remove(self) -> None:
        """Ask whether to remove the process of the task under the cursor."""
        tid = self._listing("tasks").key
        row = next((row for row in self._tasks if row.tid == tid), None)
        if row is None or not row.enclave or not row.pid:
            self._say("no task of an enclave is under the cursor")
            return
        change = changes.remove(row.enclave, row.pid)
        self._confirm(f"remove process {row.pid} ({row.comm}) from enclave {row.enclave}?", change)

    def action_destroy(self) -> None:
        """Ask whether to destroy the enclave."""
        if (id := self._chosen_enclave()) is None:
            return
        row = self._frame.enclave(id)
        tasks = row.tasks if row is not None else 0
        self._confirm(f"destroy enclave {id}? its tasks ({tasks}) get their old policy back", changes.destroy(id))

    def _confirm(self, question: str, change: changes.Change) -> None:
        def take(answer: bool) -> None:
            if answer:
                self._change(change)
            else:
                self._say("nothing was changed")

        self._ask(Confirm(f"{question}\n  {change}", take))

    def _change(self, change: changes.Change) -> None:
        self._say(f"{change} …" if self._blocks else f"{change} ...")

        async def run() -> None:
            status, output = await changes.run(change)
            self._say(output if output and not status else f"{change}: status {status}\n{output}" if status else "done")

        self.run_worker(run(), exit_on_error=True)
