"""What keys do with the cursor and the window: steps, jumps and the trail of them, marks, playing, zoom."""

from __future__ import annotations

from textual import events

from fdtrace.recorder.errors import FdtraceError
from fdtrace.tui.debug import Place, Trail
from fdtrace.tui.keys import MAX_PANES
from fdtrace.tui.series import Window
from fdtrace.tui.view import ReplayView


class Moving(ReplayView):
    """Moves the cursor and the window. A jump, unlike a step, can be undone."""

    def prepare(self) -> None:
        super().prepare()
        self.trail = Trail()
        self.marks: dict[str, Place] = {}
        self._letter_for = ""

    # Counts, digits that name a pane, and letters that name a mark

    def on_key(self, event: events.Key) -> None:
        """Letters of marks; digits: a count, or the pane with that number."""
        typed = event.character or ""
        if self.screen.is_modal or self.prompt.opened or not (typed.isascii() and typed.isdigit()):
            return
        event.stop()
        fresh = not self.count.pending
        if not self.count.digit(typed, self.clock(), self.board.active):
            self.action_fit()
            return
        if (fresh or len(self.count.pending) == 1) and int(typed) <= MAX_PANES:
            self._activate(int(typed))
        self.show_status()

    def _activate(self, number: int) -> None:
        """Make the pane with a number on the screen the active one."""
        if self.board.alone:
            if 0 < number <= len(self.panes):
                self.set_active(number - 1)
            return
        visible = self.board.visible(self.size.width)
        if 0 < number <= len(visible):
            self.set_active(visible[number - 1])

    def take_count(self, *, by_pane: bool = False) -> int | None:
        """The count typed before this key; a digit that was one gives the active pane back."""
        undo = self.count.undo
        count = self.count.take(self.clock(), by_pane=by_pane)
        if count is not None and undo is not None:
            self.set_active(undo)
        self.count.clear()
        return count

    # Moving

    def go(self, step: int, message: str = "", *, jump: bool = False) -> None:
        """Move the cursor to a step; what plays goes on from there. `jump`: it can be undone."""
        if jump:
            self.trail.leave(self.place)
        self.following = False
        window = self.board.window
        self.board.move(step)
        if self.player.playing:
            self.player.start(self.board.cursor, self.clock())
        self._show(window)
        if message:
            self.show_status(message)

    def _show(self, before: Window) -> None:
        if self.board.window != before:
            self.show_view()
            return
        for pane in self.panes:
            if pane.display:
                pane.move_cursor(self.board.cursor)
        self.show_step()

    @property
    def place(self) -> Place:
        """Where one is."""
        return Place(self.board.cursor, self.board.window)

    def action_step(self, direction: int) -> None:
        """A step on or back, or as many as the count says."""
        count = self.take_count() or 1
        self.go(self.board.cursor + direction * count, jump=count > 1)

    def action_exceeded(self, direction: int) -> None:
        """The next step over the limit in the active pane, or the one before."""
        count = self.take_count(by_pane=True) or 1
        series, cursor = self.active_pane.series, self.board.cursor
        if series is None:
            self.show_status("this pane has no history yet")
            return
        step = (
            series.exceeded_after(cursor, count) if direction > 0 else series.exceeded_before(cursor, count)
        )
        if step is None:
            where = "after" if direction > 0 else "before"
            self.show_status(f"no step over the limit {where} this one in this pane")
            return
        self.go(step, jump=True)

    def action_first(self) -> None:
        """The first step."""
        self.take_count()
        self.go(self.board.window.low, jump=True)

    def action_last(self) -> None:
        """The last step, or the one that the count names."""
        count = self.take_count()
        self.go(self.board.window.high - 1 if count is None else count, jump=True)

    # Back and forward, marks

    def action_undo(self) -> None:
        """Back to where the last jump left."""
        self._turn(self.trail.back(self.place), "no jump to undo")

    def action_redo(self) -> None:
        """Forward again."""
        self._turn(self.trail.forward(self.place), "no jump was undone")

    def _turn(self, place: Place | None, otherwise: str) -> None:
        self.take_count()
        if place is None:
            self.show_status(otherwise)
            return
        self.board.window = self.board.window.at(place.window.start, place.window.span)
        self.following = False
        self.board.move(place.step)
        self.show_view()

    def action_mark(self) -> None:
        """Mark this step with the letter that comes next."""
        self._ask_letter("mark")

    def action_to_mark(self) -> None:
        """Go to the mark whose letter comes next."""
        self._ask_letter("go")

    def _ask_letter(self, what: str) -> None:
        self.count.clear()
        self._letter_for = what
        known = " ".join(f"{letter}={place.step}" for letter, place in sorted(self.marks.items()))
        self.show_status(("mark with which letter?" if what == "mark" else "to which mark?") + f" {known}")

    def took_letter(self, typed: str | None) -> bool:
        """Whether a key was the letter of a mark."""
        what, self._letter_for = self._letter_for, ""
        if not what:
            return False
        if not typed or not typed.isprintable() or typed.isspace():
            self.show_status("no mark")
        elif what == "mark":
            self.marks[typed] = self.place
            self.show_status(f"marked step {self.board.cursor} as {typed}")
        elif typed not in self.marks:
            self.show_status(f"there is no mark {typed}")
        else:
            self.go(self.marks[typed].step, jump=True)
        return True

    # Playing

    def action_play(self) -> None:
        """Play, or stop."""
        if self.player.playing:
            self.stop_playing()
        else:
            self.player.start(self.board.cursor, self.clock())
            self._ticker.resume()
        self.show_status()

    def stop_playing(self) -> None:
        """Play no more."""
        self.player.stop()
        self._ticker.pause()

    def _tick(self) -> None:
        due = self.player.due(self.clock())
        if due is None or due == self.board.cursor:
            return
        window = self.board.window
        try:
            stop = self.stop_between(self.board.cursor, due)
        except FdtraceError:
            self.stop_playing()
            raise
        self.following = False
        self.board.move(due if stop is None else stop)
        if stop is not None or not window.low <= due < window.high:
            self.stop_playing()
        self._show(window)
        if stop is not None:
            self.show_status(f"stopped at a breakpoint: {self.stopped_by(stop)}")

    def stop_between(self, step: int, due: int) -> int | None:
        """The first breakpoint between two steps, the second one included."""
        return None

    def stopped_by(self, step: int) -> str:
        """The breakpoints that a step is a stop of."""
        return ""

    def action_speed(self, factor: float) -> None:
        """Play faster or slower."""
        self.player.change(factor, self.board.cursor, self.clock())
        self.show_status(f"plays {self.player.speed:g} steps a second")

    def action_reverse(self) -> None:
        """Play the other way."""
        self.player.reverse(self.board.cursor, self.clock())
        self.show_status("plays backwards" if self.player.backwards else "plays forwards")

    # Zoom and pan

    def look_at(self, window: Window) -> None:
        """Show another window."""
        if window != self.board.window:
            self.board.window = window
            self.show_window()
            self.show_status()

    def action_zoom(self, factor: float) -> None:
        """Zoom at the cursor, or in the middle where the cursor is not in sight."""
        window, cursor = self.board.window, self.board.cursor
        at = cursor if window.start <= cursor < window.end else (window.start + window.end) // 2
        self.look_at(window.zoom(factor ** min(self.take_count() or 1, 40), at))

    def action_pan(self, share: float) -> None:
        """Move the window, the cursor staying on its step."""
        self.look_at(self.board.window.pan(share * (self.take_count() or 1)))

    def action_fit(self) -> None:
        """Show everything."""
        self.look_at(self.board.window.fit())

    def action_follow(self) -> None:
        """Bring the cursor into the middle."""
        self.look_at(self.board.window.around(self.board.cursor))
