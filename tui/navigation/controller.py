"""Moves the cursor and the window: steps, jumps, marks, playing, zoom."""

from __future__ import annotations

from typing import Literal, Protocol

from textual.timer import Timer

from fdtrace.recorder.errors import FdtraceError
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.navigation.jumps import JumpHistory, Place
from fdtrace.tui.navigation.playback import Player
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.panes.series import Window
from fdtrace.tui.screen_protocol import ReplayScreen

TICK = 1 / 30
"""Seconds between two updates of the cursor while it plays."""


class Stops(Protocol):
    """Where playing stops: the debugger's breakpoints."""

    def stop_between(self, step: int, due: int) -> int | None:
        """The first step with a breakpoint after `step`, up to and including `due`; None: there is none."""

    def stopped_by(self, step: int) -> str:
        """The texts of the breakpoints that stop at a step."""


class Navigation:
    """Moves the cursor and the window. A jump, unlike a step, can be undone."""

    def __init__(
        self, screen: ReplayScreen, panes: Panes, stops: Stops, count: CountPrefix, player: Player
    ) -> None:
        self.screen, self.panes, self.stops, self.count, self.player = screen, panes, stops, count, player
        self.trail = JumpHistory()
        self.marks: dict[str, Place] = {}
        self._letter_for: Literal["", "mark", "go"] = ""
        self._ticker: Timer | None = None

    def begin(self) -> None:
        """Make the timer for playing. It is paused until something plays."""
        self._ticker = self.screen.every(TICK, self.tick, pause=True)

    # Counts, and digits that name a pane

    def digit(self, typed: str) -> None:
        """A digit was typed: it belongs to a count, or names a pane."""
        is_first = not self.count.pending
        if not self.count.digit(typed, self.screen.clock(), self.screen.session.active):
            self.fit()
            return
        if is_first or len(self.count.pending) == 1:
            self.panes.activate_number(int(typed))
        self.screen.say()

    def take_count(self, *, by_pane: bool = False) -> int | None:
        """The count typed before this key. If a digit of it had changed the active pane, that change is undone."""
        undo = self.count.undo
        count = self.count.take(self.screen.clock(), by_pane=by_pane)
        if count is not None and undo is not None:
            self.panes.activate(undo)
        self.count.clear()
        return count

    # Moving

    def go(self, step: int, message: str = "", *, jump: bool = False) -> None:
        """Move the cursor to a step; playing continues from there. `jump`: the move can be undone."""
        if jump:
            self.trail.leave(self.place)
        session = self.screen.session
        session.following = False
        window = session.window
        session.move(step)
        if self.player.playing:
            self.player.start(session.cursor, self.screen.clock())
        self.screen.moved(window)
        if message:
            self.screen.say(message)

    @property
    def place(self) -> Place:
        """The current step and window."""
        return Place(self.screen.session.cursor, self.screen.session.window)

    def step(self, direction: int) -> None:
        """Go one step on or back, or as many as the count says."""
        count = self.take_count() or 1
        self.go(self.screen.session.cursor + direction * count, jump=count > 1)

    def exceeded(self, direction: int) -> None:
        """Go to the next step over the limit in the active pane, or to the previous one (`direction` -1)."""
        count = self.take_count(by_pane=True) or 1
        series, cursor = self.panes.current.series, self.screen.session.cursor
        if series is None:
            self.screen.say("this pane has no history yet")
            return
        step = (
            series.exceeded_after(cursor, count) if direction > 0 else series.exceeded_before(cursor, count)
        )
        if step is None:
            where = "after" if direction > 0 else "before"
            self.screen.say(f"no step over the limit {where} this one in this pane")
            return
        self.go(step, jump=True)

    def first(self) -> None:
        """Go to the first step."""
        self.take_count()
        self.go(self.screen.session.window.low, jump=True)

    def last(self) -> None:
        """Go to the last step, or to the step that the count names."""
        count = self.take_count()
        self.go(self.screen.session.window.high - 1 if count is None else count, jump=True)

    # Back and forward, marks

    def undo(self) -> None:
        """Go back to the place before the last jump."""
        self._return_to(self.trail.back(self.place), "no jump to undo")

    def redo(self) -> None:
        """Make the undone jump again."""
        self._return_to(self.trail.forward(self.place), "no jump was undone")

    def _return_to(self, place: Place | None, message_if_none: str) -> None:
        self.take_count()
        if place is None:
            self.screen.say(message_if_none)
            return
        session = self.screen.session
        before, session.following = session.window, False
        session.window = session.window.at(place.window.start, place.window.span)
        session.move(place.step)
        self.screen.moved(before)

    def mark(self) -> None:
        """Mark this step with the letter that is typed next."""
        self._ask_letter("mark", "mark with which letter?")

    def to_mark(self) -> None:
        """Go to the mark whose letter is typed next."""
        self._ask_letter("go", "to which mark?")

    def _ask_letter(self, purpose: Literal["mark", "go"], question: str) -> None:
        self.count.clear()
        self._letter_for = purpose
        marks = " ".join(f"{letter}={place.step}" for letter, place in sorted(self.marks.items()))
        self.screen.say(f"{question} {marks}")

    def took_letter(self, typed: str | None) -> bool:
        """Take a key as the letter of a mark, if one is asked for. Returns whether it did."""
        purpose, self._letter_for = self._letter_for, ""
        if not purpose:
            return False
        if not typed or not typed.isprintable() or typed.isspace():
            self.screen.say("no mark")
        elif purpose == "mark":
            self.marks[typed] = self.place
            self.screen.say(f"marked step {self.place.step} as {typed}")
        elif typed not in self.marks:
            self.screen.say(f"there is no mark {typed}")
        else:
            self.go(self.marks[typed].step, jump=True)
        return True

    # Playing

    def play(self) -> None:
        """Play, or stop."""
        if self.player.playing:
            self.stop()
        else:
            self.player.start(self.screen.session.cursor, self.screen.clock())
            if self._ticker is not None:
                self._ticker.resume()
        self.screen.say()

    def stop(self) -> None:
        """Stop playing."""
        self.player.stop()
        if self._ticker is not None:
            self._ticker.pause()

    def tick(self) -> None:
        """Move to the step that is due, or to a breakpoint on the way to it."""
        session, due = self.screen.session, self.player.due(self.screen.clock())
        if due is None or due == session.cursor:
            return
        window = session.window
        try:
            stop = self.stops.stop_between(session.cursor, due)
        except FdtraceError:
            self.stop()
            raise
        session.following = False
        session.move(due if stop is None else stop)
        if stop is not None or not window.low <= due < window.high:
            self.stop()
        self.screen.moved(window)
        if stop is not None:
            self.screen.say(f"stopped at a breakpoint: {self.stops.stopped_by(stop)}")

    def speed(self, factor: float) -> None:
        """Play faster or slower."""
        self.player.change(factor, self.screen.session.cursor, self.screen.clock())
        self.screen.say(f"plays {self.player.speed:g} steps a second")

    def reverse(self) -> None:
        """Play in the other direction."""
        self.player.reverse(self.screen.session.cursor, self.screen.clock())
        self.screen.say("plays backwards" if self.player.backwards else "plays forwards")

    # Zoom and pan

    def look_at(self, window: Window) -> None:
        """Show a window, if it is not the current one."""
        if window != self.screen.session.window:
            self.screen.session.window = window
            self.screen.show_window()
            self.screen.say()

    def zoom(self, factor: float) -> None:
        """Zoom at the cursor, or at the middle of the window if the cursor is outside it."""
        window, cursor = self.screen.session.window, self.screen.session.cursor
        at = cursor if window.start <= cursor < window.end else (window.start + window.end) // 2
        self.look_at(window.zoom(factor ** min(self.take_count() or 1, 40), at))

    def pan(self, share: float) -> None:
        """Move the window; the cursor stays on its step."""
        self.look_at(self.screen.session.window.pan(share * (self.take_count() or 1)))

    def fit(self) -> None:
        """Show everything."""
        self.look_at(self.screen.session.window.fit())

    def centre(self) -> None:
        """Bring the cursor into the middle."""
        session = self.screen.session
        self.look_at(session.window.around(session.cursor))
