"""Progress of a recording, on stderr: one line that renews itself on a terminal, few lines elsewhere."""

from __future__ import annotations

import sys
import time

from fdtrace.recorder.printable import printable, printable_lines

EVERY = 10.0
"""Seconds between two lines where stderr is no terminal."""


class Progress:
    """Says how far something is; `note` says something that stays. While `silent`, notes wait and all else is lost."""

    def __init__(self) -> None:
        self.silent = False
        self._waiting: list[str] = []
        self.terminal = sys.stderr.isatty()
        self.last = 0.0
        self.noted: set[str] = set()
        self.dirty = False

    def update(self, text: str) -> None:
        """The state now."""
        if self.silent:
            return
        now = time.monotonic()
        if self.terminal:
            sys.stderr.write(f"\r\x1b[2K{printable(text)}")
            self.dirty = True
        elif now - self.last >= EVERY:
            sys.stderr.write(printable(text) + "\n")
            self.last = now
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """Say `text` on a line of its own, once."""
        if text in self.noted:
            return
        self.noted.add(text)
        if self.silent:
            self._waiting.append(text)
            return
        self._say(text)

    def speak(self) -> None:
        """Be silent no longer."""
        self.silent = False
        for text in self._waiting:
            self._say(text)
        self._waiting.clear()

    def _say(self, text: str) -> None:
        self.done()
        sys.stderr.write(f"fdtrace: {printable_lines(text, '  ')}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line that renews itself off the terminal."""
        if self.dirty:
            sys.stderr.write("\r\x1b[2K")
            self.dirty = False

    def done(self) -> None:
        """End the line that renews itself."""
        if self.dirty:
            sys.stderr.write("\n")
            self.dirty = False
