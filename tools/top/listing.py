# SPDX-License-Identifier: Apache-2.0
"""A table of which only the visible lines are drawn, and whose cursor stays on its row when the rows move.

textual's DataTable takes text in brackets, such as a kernel thread's name, for markup, and leaves the cursor where it
was on the screen when it sorts. This one draws text as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .drawing import fit

#: Looks by name. None depends on colour alone: the text of a row says the same.
_PLAIN = {
    "head": Style(reverse=True),
    "row": Style(),
    "busy": Style(bold=True),
    "bad": Style(bold=True, underline=True),
}
_COLOURS = {
    "head": Style(color="black", bgcolor="green"),
    "busy": Style(color="green", bold=True),
    "bad": Style(color="white", bgcolor="red", bold=True),
}


def looks(colour: bool) -> dict[str, Style]:
    """The styles of a listing, with or without colour."""
    return {**_PLAIN, **_COLOURS} if colour else _PLAIN


class Listing(ScrollView, can_focus=True):
    """Rows below a heading; ``cursor`` is the number of the row under the cursor, ``key`` is that row's."""

    def __init__(self, id: str, *, colour: bool) -> None:
        super().__init__(id=id)
        self._looks = looks(colour)
        self._head = ""
        self._keys: Sequence[object] = ()
        self._line: Callable[[int], tuple[str, str]] = lambda number: ("", "row")
        self.cursor = 0

    @property
    def key(self) -> object | None:
        """The key of the row under the cursor; None without rows."""
        return self._keys[self.cursor] if self._keys else None

    def fill(self, head: str, keys: Sequence[object], line: Callable[[int], tuple[str, str]]) -> None:
        """Show other rows; ``line`` returns the text and the look of a row by number."""
        key = self.key
        self._head, self._keys, self._line = head, keys, line
        self.cursor = min(self.cursor, max(len(keys) - 1, 0))
        if key is not None and key in keys:
            self.cursor = keys.index(key)
        self.virtual_size = Size(0, len(keys) + 1)
        self._reveal()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line ``y`` of the widget: the heading stays while the rows scroll."""
        width = self.size.width
        number = y - 1 + round(self.scroll_offset.y)
        if y == 0:
            text, style = self._head, self._looks["head"]
        elif number < len(self._keys):
            text, look = self._line(number)
            style = self._looks[look]
            if number == self.cursor:
                style += Style(reverse=True) if self.has_focus else Style(underline=True)
        else:
            text, style = "", self._looks["row"]
        return Strip([Segment(fit(text, width), style)])

    def move(self, step: int) -> None:
        """Move the cursor by ``step`` rows, as far as there are rows."""
        self.cursor = max(min(self.cursor + step, len(self._keys) - 1), 0)
        self._reveal()
        self.refresh()

    def page(self, step: int) -> None:
        """Move the cursor by ``step`` screens."""
        self.move(step * max(self.size.height - 2, 1))

    def on_click(self, event: Click) -> None:
        """Put the cursor on the row that was clicked."""
        number = event.y - 1 + round(self.scroll_offset.y)
        if event.y > 0 and number < len(self._keys):
            self.move(number - self.cursor)

    def on_focus(self) -> None:
        """Draw the cursor as that of the list that has the keys."""
        self.refresh()

    def on_blur(self) -> None:
        """Draw the cursor as that of a list that has them not."""
        self.refresh()

    def on_resize(self) -> None:
        """Keep the cursor visible."""
        self._reveal()

    def _reveal(self) -> None:
        height = self.size.height - 1
        if height <= 0:
            return
        top = round(self.scroll_offset.y)
        if self.cursor < top:
            top = self.cursor
        elif self.cursor >= top + height:
            top = self.cursor - height + 1
        top = max(min(top, len(self._keys) - height), 0)
        self.scroll_to(y=top, animate=False)
