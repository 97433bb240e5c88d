"""The top line and the bottom line of the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from textual.content import Content
from textual.style import Style
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.recording import Recording
from fdtrace.tui.keys import hints, textual_action
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.navigation.playback import Player
from fdtrace.tui.panes.series import Series
from fdtrace.tui.replay_session import ReplaySession
from fdtrace.tui.theme import Glyphs

HEAD = 500
"""Most characters of the top line."""
MESSAGE_STAYS = 4.0
"""Seconds that a message stays on the bottom line if no key is pressed."""


class StatusLines:
    """The top line shows the engine, its limits, and the state of a recording in progress. The bottom line shows a
    message, or the current step and window.
    """

    def __init__(
        self,
        title: str,
        session: ReplaySession,
        glyphs: Glyphs,
        clock: Callable[[], float],
        count: CountPrefix,
        player: Player,
        *,
        says_why: bool,
    ) -> None:
        """`says_why`: the bottom line describes the exceeded step on which the screen opens, until the cursor moves."""
        self.title, self.session, self.glyphs = title, session, glyphs
        self.clock, self.count, self.player = clock, count, player
        self.live = ""
        """The state of a recording in progress, for the top line; empty: the recording is complete."""
        self.standstill = ""
        """How the engine of a recording in progress stands still, for the top line; empty: it does not."""
        self.head = Static("", id="head", markup=False)
        self.line = Static("", id="status", markup=False)
        self._message, self._message_at, self._unasked = "", float("-inf"), False
        exceeds = bool(len(session.recorded.over))
        self._opened_on = session.cursor if says_why and exceeds else None

    def show_head(self) -> None:
        """Show the top line."""
        session = self.session
        text = head_line(
            self.title, session.recording, session.recorded, self.glyphs, self.live, self.standstill
        )
        self.head.update(text, layout=False)

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """A context for updates that no key asked for: in it, a message on the bottom line stays for a while."""
        previous, self._unasked = self._unasked, True
        try:
            yield
        finally:
            self._unasked = previous

    def show(self, message: str = "") -> None:
        """Show the bottom line: the count typed so far; a message, or the current step and window; hints for keys."""
        if message:
            self._message, self._message_at = message, self.clock()
        elif self._unasked and self.clock() - self._message_at < MESSAGE_STAYS:
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
        """The description of the step on which the screen opened; empty once the cursor has moved."""
        if self._opened_on is None:
            return ""
        if self.session.cursor != self._opened_on:
            self._opened_on = None
            return ""
        return opening_line(self.session.recorded, self._opened_on)


def one_line(error: str) -> str:
    """The text of an error (what, why, next) on one line."""
    return " ".join(error.replace("\n  why: ", ": ").replace("\n  next: ", "; next: ").split())


def head_line(
    title: str, recording: Recording, recorded: Series, glyphs: Glyphs, live: str, standstill: str = ""
) -> str:
    """The top line: the engine, its limits, and the number of recorded steps.

    Args:
        title: the title of the screen.
        recording: what was recorded.
        recorded: the recording as a series.
        glyphs: the characters to draw with.
        live: the state of a recording in progress; empty: it is complete.
        standstill: how the engine stands still, which is shown first; empty: it does not.
    """
    engine = recording.engine
    speculation = f"K {engine.num_speculative_tokens}" if engine.spec_method else "no speculation"
    items = [
        title, *([standstill] if standstill else []), f"{engine.name} {engine.version}".strip(),
        f"limit {recorded.limit}", speculation, f"{engine.max_num_seqs} seqs", f"{engine.num_blocks} blocks",
        f"{len(recorded)} steps", *([live] if live else []),
    ]  # fmt: skip
    return printable(f" {glyphs.dot} ".join(items), HEAD)


def opening_line(series: Series, step: int) -> str:
    """A sentence on the exceeded step on which the screen opens."""
    ran, count = series.value("num_tokens", step) or 0, len(series.over)
    position = "the first" if step == int(series.step[series.over[0]]) else "one"
    return f"{position} of {count} exceeded steps: {step} ran {ran}, limit {series.limit}; Enter tells why"


def with_hints(left: str, room: int, glyphs: Glyphs) -> Content:
    """A line that ends with as many hints as fit. A click on a hint does what its key does."""
    shown = hints(room - len(left) - 2)
    gap = " | " if glyphs.border == "ascii" else " · "
    used = sum(len(text) for text, _ in shown) + len(gap) * (len(shown) - 1)
    segments: list[str | tuple[str, Style]] = [left, " " * (room - len(left) - used)]
    for at, (text, action) in enumerate(shown):
        segments += [gap] if at else []
        segments.append((text, Style.from_meta({"@click": textual_action(action)})))
    return Content.assemble(*segments)
