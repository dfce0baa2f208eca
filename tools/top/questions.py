# SPDX-License-Identifier: Apache-2.0
"""The questions that the screen asks at its lower edge: plain text, and what a key does to it.

``press`` is called with each key from the one on that asks the question, so that keys typed ahead are not lost. It
returns whether the question is over; then ``answer`` has been given to ``then``, unless it was left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: How many choices are visible at a time.
_VISIBLE = 10
_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -_VISIBLE, "pagedown": _VISIBLE, "home": -1000, "end": 1000}


class Question:
    """A text to read; any key ends it. It ``covers`` the lists."""

    covers = True

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def lines(self) -> list[str]:
        """What is shown."""
        return self._text.splitlines()

    def press(self, key: str, character: str | None) -> bool:
        """Take a key."""
        return True


class Confirm(Question):
    """Ask whether to do something: only ``y`` does it. ``then`` gets the answer."""

    covers = False

    def __init__(self, text: str, then: Callable[[bool], None]) -> None:
        super().__init__(f"{text}\ny: do it   any other key: leave it")
        self._then = then

    def press(self, key: str, character: str | None) -> bool:
        self._then(key in ("y", "Y"))
        return True


class Prompt(Question):
    """Ask for a line; ``live`` gets what is written while it is written, and the first value if it is left."""

    covers = False

    def __init__(
        self, text: str, then: Callable[[str], None], value: str = "", live: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(text)
        self._then, self._value, self._live = then, value, live
        self._first = value

    @property
    def lines(self) -> list[str]:
        return [*super().lines, f"> {self._value}_"]

    def press(self, key: str, character: str | None) -> bool:
        if key == "enter":
            self._then(self._value)
            return True
        if key == "escape":
            self.write(self._first)
            return True
        if key in ("backspace", "ctrl+h"):
            self.write(self._value[:-1])
        elif key == "ctrl+u":
            self.write("")
        elif character is not None and character.isprintable():
            self.write(self._value + character)
        return False

    def write(self, value: str) -> None:
        """Replace the line."""
        self._value = value
        if self._live is not None:
            self._live(value)

    def paste(self, text: str) -> None:
        """Append the first line of ``text``."""
        self.write(self._value + "".join(text.splitlines()[:1]))


class Choose(Question):
    """Ask for one of ``choices``, which have a description each."""

    covers = False

    def __init__(self, text: str, choices: Mapping[str, str], then: Callable[[str], None]) -> None:
        super().__init__(text)
        self._choices, self._then = choices, then
        self._names = list(choices)
        self._at = 0

    @property
    def lines(self) -> list[str]:
        width = max(map(len, self._names))
        first = max(0, min(self._at - _VISIBLE // 2, len(self._names) - _VISIBLE))
        shown = self._names[first : first + _VISIBLE]
        return [
            *super().lines,
            *(
                f"{'>' if name == self._names[self._at] else ' '} {name:{width}}  {self._choices[name]}"
                for name in shown
            ),
            "Enter: choose   Escape: leave it",
        ]

    def press(self, key: str, character: str | None) -> bool:
        if key in _STEPS:
            self._at = max(0, min(self._at + _STEPS[key], len(self._names) - 1))
        elif key == "enter":
            self._then(self._names[self._at])
        return key in ("enter", "escape")
