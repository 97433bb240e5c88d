"""The first and the last line of the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from textual.content import Content
from textual.style import Style
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.recording import Recording
from fdtrace.tui.keys import do, hints
from fdtrace.tui.navigation.counts import Count
from fdtrace.tui.navigation.playback import Player
from fdtrace.tui.panes.series import Series
from fdtrace.tui.replay_session import ReplaySession
from fdtrace.tui.theme import Glyphs

HEAD = 500
"""Characters of the first line at most."""
MESSAGE_STAYS = 4.0
"""Seconds that a message stays on the bottom line, where no key was pressed since."""


class StatusLines:
    """The first line: the engine, its limits, and how a recording in progress stands. The last: where one is."""

    def __init__(
        self,
        title: str,
        session: ReplaySession,
        glyphs: Glyphs,
        clock: Callable[[], float],
        count: Count,
        player: Player,
        *,
        says_why: bool,
    ) -> None:
        """`says_why`: until the cursor is moved the last line says what the screen opened on, an exceeded step."""
        self.title, self.session, self.glyphs = title, session, glyphs
        self.clock, self.count, self.player = clock, count, player
        self.live = ""
        """How a recording in progress stands, for the first line; empty: it is complete."""
        self.standstill = ""
        """How the engine of a recording in progress stands still, for the first line; empty: it does not."""
        self.head = Static("", id="head", markup=False)
        self.line = Static("", id="status", markup=False)
        self._message, self._said_at, self._unasked = "", float("-inf"), False
        exceeds = bool(len(session.recorded.over))
        self._opened_on = session.cursor if says_why and exceeds else None

    def show_head(self) -> None:
        """Show the first line."""
        session = self.session
        text = head_line(
            self.title, session.recording, session.recorded, self.glyphs, self.live, self.standstill
        )
        self.head.update(text, layout=False)

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """While something is shown that no key asked for: a message on the bottom line stays for a while."""
        before, self._unasked = self._unasked, True
        try:
            yield
        finally:
            self._unasked = before

    def show(self, message: str = "") -> None:
        """The bottom line: a message, else where one is; what was typed, and what may be typed."""
        if message:
            self._message, self._said_at = message, self.clock()
        elif self._unasked and self.clock() - self._said_at < MESSAGE_STAYS:
            message = self._message
        else:
            self._message = ""
        message = message or self._opening()
        session, window, glyphs = self.session, self.session.window, self.glyphs
        left = printable(message) or f"step {session.cursor} of {window.low}-{window.high - 1}"
        if not message and (window.start, window.end) != (window.low, window.high):
            left += f" {glyphs.dot} shows {window.start}-{window.end - 1}"
        if self.player.playing:
            left += f" {glyphs.dot} {'<<' if self.player.backwards else '>>'} {self.player.speed:g}/s"
        if session.following and self.live and not message:
            left += f" {glyphs.dot} following"
        width = self.line.app.size.width
        if session.has_pages(width) and not session.alone:
            left += f" {glyphs.dot} ] more formulas"
        if self.count.pending:
            left = f"{self.count.pending} {glyphs.dot} {left}"
        self.line.update(with_hints(left, width - 2, glyphs), layout=False)

    def _opening(self) -> str:
        """What the screen opened on, until the cursor has been moved."""
        if self._opened_on is None:
            return ""
        if self.session.cursor != self._opened_on:
            self._opened_on = None
            return ""
        return opening_line(self.session.recorded, self._opened_on)


def one_line(error: str) -> str:
    """An error's text (what, why, next) in one line."""
    return " ".join(error.replace("\n  why: ", ": ").replace("\n  next: ", "; next: ").split())


def head_line(
    title: str, recording: Recording, recorded: Series, glyphs: Glyphs, live: str, standstill: str = ""
) -> str:
    """The engine, what limits it, how much is recorded; `live`: how a recording in progress stands; `standstill`: how
    the engine stands still, said first.
    """
    engine = recording.engine
    speculation = f"K {engine.num_speculative_tokens}" if engine.spec_method else "no speculation"
    parts = [
        title, *([standstill] if standstill else []), f"{engine.name} {engine.version}".strip(),
        f"limit {recorded.limit}", speculation, f"{engine.max_num_seqs} seqs", f"{engine.num_blocks} blocks",
        f"{len(recorded)} steps", *([live] if live else []),
    ]  # fmt: skip
    return printable(f" {glyphs.dot} ".join(parts), HEAD)


def opening_line(series: Series, step: int) -> str:
    """What the screen opens on, in words."""
    ran, count = series.value("num_tokens", step) or 0, len(series.over)
    which = "the first" if step == int(series.step[series.over[0]]) else "one"
    return f"{which} of {count} exceeded steps: {step} ran {ran}, limit {series.limit}; Enter tells why"


def with_hints(left: str, room: int, glyphs: Glyphs) -> Content:
    """A line that ends in as many hints as fit; a click on one does what its key does."""
    shown = hints(room - len(left) - 2)
    gap = " | " if glyphs.border == "ascii" else " · "
    used = sum(len(text) for text, _ in shown) + len(gap) * (len(shown) - 1)
    parts: list[str | tuple[str, Style]] = [left, " " * (room - len(left) - used)]
    for at, (text, action) in enumerate(shown):
        parts += [gap] if at else []
        parts.append((text, Style.from_meta({"@click": do(action)})))
    return Content.assemble(*parts)
