"""Progress of a recording, on stderr: one line that is rewritten on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time

from fdtrace.recorder.printable import printable, printable_lines

EVERY = 10.0
"""Seconds between two lines if stderr is no terminal."""


class Progress:
    """Shows the state of something on one line; `note` prints a line that stays.

    While `silent`, notes are kept for later and states are not shown.
    """

    def __init__(self) -> None:
        self.silent = False
        self._waiting: list[str] = []
        self.terminal = sys.stderr.isatty()
        self.last = 0.0
        self.noted: set[str] = set()
        self.dirty = False

    def update(self, text: str) -> None:
        """Show the current state."""
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
        """Print `text` on a line of its own; only the first time for each text."""
        if text in self.noted:
            return
        self.noted.add(text)
        if self.silent:
            self._waiting.append(text)
            return
        self._say(text)

    def speak(self) -> None:
        """End the silence, and print the notes that were kept."""
        self.silent = False
        for text in self._waiting:
            self._say(text)
        self._waiting.clear()

    def _say(self, text: str) -> None:
        self.done()
        sys.stderr.write(f"fdtrace: {printable_lines(text, '  ')}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line of the state from the terminal."""
        if self.dirty:
            sys.stderr.write("\r\x1b[2K")
            self.dirty = False

    def done(self) -> None:
        """End the line of the state; it stays on the terminal."""
        if self.dirty:
            sys.stderr.write("\n")
            self.dirty = False
