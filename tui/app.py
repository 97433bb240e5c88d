"""The replay screen: panes side by side on one cursor and one zoom, and what keys and mouse do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from textual import events
from textual.app import SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from recorder.recording import Recording
from replayer.history import History
from tui.dialogs import HelpScreen, StepPrompt, parse_step
from tui.jobs import Replay, Rows
from tui.keys import KEYS, MAX_PANES, bindings
from tui.pane import ChartPane
from tui.requests import RequestTable
from tui.series import Window
from tui.view import ReplayView


class ReplayApp(ReplayView):
    """The replay screen. Its actions are named in the key table; they change the board."""

    BINDINGS: ClassVar[list[BindingType]] = list(bindings())

    # Counts, and digits that name a pane

    def on_key(self, event: events.Key) -> None:
        """Digits: a count, or the pane with that number."""
        if not (event.character and event.character.isascii() and event.character.isdigit()):
            return
        if self.screen.is_modal or self.query_one(StepPrompt).has_focus:
            return
        event.stop()
        fresh = not self.count.pending
        if not self.count.digit(event.character, self.clock(), self.board.active):
            self.action_fit()
            return
        if (fresh or len(self.count.pending) == 1) and int(event.character) <= MAX_PANES:
            self._activate(int(event.character))
        self.show_status()

    def _activate(self, number: int) -> None:
        """Make the pane with a number on the screen the active one."""
        if self.board.alone:
            if 0 < number <= len(self.panes):
                self._set_active(number - 1)
            return
        visible = self.board.visible(self.size.width)
        if 0 < number <= len(visible):
            self._set_active(visible[number - 1])

    def _set_active(self, at: int) -> None:
        if at != self.board.active:
            self.board.active = at
            self.refresh_all()

    def _take(self, *, by_pane: bool = False) -> int | None:
        """The count typed before this key; a digit that was one gives the active pane back."""
        undo = self.count.undo
        count = self.count.take(self.clock(), by_pane=by_pane)
        if count is not None and undo is not None:
            self._set_active(undo)
        self.count.clear()
        return count

    # Moving

    def go(self, step: int, message: str = "") -> None:
        """Move the cursor to a step; what plays goes on from there."""
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

    def action_step(self, direction: int) -> None:
        """A step on or back, or as many as the count says."""
        self.go(self.board.cursor + direction * (self._take() or 1))

    def action_exceeded(self, direction: int) -> None:
        """The next step over the limit in the active pane, or the one before."""
        count = self._take(by_pane=True) or 1
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
        self.go(step)

    def action_first(self) -> None:
        """The first step."""
        self._take()
        self.go(self.board.window.low)

    def action_last(self) -> None:
        """The last step, or the one that the count names."""
        count = self._take()
        self.go(self.board.window.high - 1 if count is None else count)

    def action_goto(self) -> None:
        """Ask for a step."""
        if self.screen.is_modal or self.query_one(StepPrompt).has_focus:
            return
        self.count.clear()
        self.query_one("#status").display = False
        self.query_one(StepPrompt).open()

    def on_step_prompt_closed(self, message: StepPrompt.Closed) -> None:
        """Go to the step that was asked for."""
        self.query_one("#status").display = True
        if not message.text:
            self.show_status()
            return
        window = self.board.window
        step = parse_step(message.text, self.board.cursor, window.low, window.high - 1)
        if step is None:
            self.show_status(f"{message.text!r} is no step: 123, +50, -50, 25% or $ are")
            return
        self.go(step)

    # Playing

    def action_play(self) -> None:
        """Play, or stop."""
        if self.player.playing:
            self._stop()
        else:
            self.player.start(self.board.cursor, self.clock())
            self._ticker.resume()
        self.show_status()

    def _stop(self) -> None:
        self.player.stop()
        self._ticker.pause()

    def _tick(self) -> None:
        due = self.player.due(self.clock())
        if due is None or due == self.board.cursor:
            return
        window = self.board.window
        self.board.move(due)
        if not window.low <= due < window.high:
            self._stop()
        self._show(window)

    def action_speed(self, factor: float) -> None:
        """Play faster or slower."""
        self.player.change(factor, self.board.cursor, self.clock())
        self.show_status(f"plays {self.player.speed:g} steps a second")

    def action_reverse(self) -> None:
        """Play the other way."""
        self.player.reverse(self.board.cursor, self.clock())
        self.show_status("plays backwards" if self.player.backwards else "plays forwards")

    # Zoom and pan

    def _look_at(self, window: Window) -> None:
        if window != self.board.window:
            self.board.window = window
            self.show_window()
            self.show_status()

    def action_zoom(self, factor: float) -> None:
        """Zoom at the cursor, or in the middle where the cursor is not in sight."""
        window, cursor = self.board.window, self.board.cursor
        at = cursor if window.start <= cursor < window.end else (window.start + window.end) // 2
        self._look_at(window.zoom(factor ** min(self._take() or 1, 40), at))

    def action_pan(self, share: float) -> None:
        """Move the window, the cursor staying on its step."""
        self._look_at(self.board.window.pan(share * (self._take() or 1)))

    def action_fit(self) -> None:
        """Show everything."""
        self._look_at(self.board.window.fit())

    def action_follow(self) -> None:
        """Bring the cursor into the middle."""
        self._look_at(self.board.window.around(self.board.cursor))

    # Panes

    def action_pane(self, direction: int) -> None:
        """Make the next pane the active one."""
        if self.screen.is_modal:
            return
        self.count.clear()
        visible = list(range(len(self.panes))) if self.board.alone else self.board.visible(self.size.width)
        at = visible.index(self.board.active)
        self._set_active(visible[(at + direction) % len(visible)])

    def action_page(self, direction: int) -> None:
        """Show other formulas beside the recording."""
        self.board.page += direction
        self.refresh_all()

    def action_maximise(self) -> None:
        """The active pane alone, or all of them."""
        self.count.clear()
        self.board.alone = not self.board.alone
        self.refresh_all()

    def action_cancel(self) -> None:
        """Stop a replay, or begin one anew that was stopped or failed."""
        pane = self.active_pane
        if pane.job.state in ("failed", "cancelled"):
            self.restart(pane)
        elif pane.job.ended:
            self.show_status("this pane is complete: there is nothing to stop")
            return
        else:
            pane.job.cancel()
        pane.redraw()

    # Requests, help

    def action_scroll(self, rows: int) -> None:
        """Scroll the requests."""
        self.query_one(RequestTable).scroll_rows(rows * (self._take() or 1))

    def action_scroll_page(self, pages: int) -> None:
        """Scroll the requests by pages."""
        self.query_one(RequestTable).scroll_pages(pages)

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(HelpScreen(classes="-ascii" if self.ascii else ""))

    # The mouse

    def on_chart_pane_picked(self, message: ChartPane.Picked) -> None:
        """A click or a drag: the cursor, and the active pane."""
        self._set_active(self.panes.index(message.pane))
        if message.step != self.board.cursor:
            self.go(message.step)

    def on_chart_pane_zoomed(self, message: ChartPane.Zoomed) -> None:
        """The wheel: zoom at the pointer."""
        self._look_at(self.board.window.zoom(message.factor, message.step))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The key table in the command palette, beside Textual's own commands."""
        yield from super().get_system_commands(screen)
        for key in KEYS:
            if key.action:
                run: Callable[[], object] = partial(self.call_later, self.run_action, key.action)
                yield SystemCommand(f"{key.help} ({key.shown})", key.group, run)


def run_replay(
    recording: Recording,
    replays: Sequence[Replay] = (),
    *,
    rows: Rows | None = None,
    recorded: History | None = None,
    ascii: bool = False,
    step: int | None = None,
) -> None:
    """Open the replay screen on a recording and return when it is left.

    `replays` are computed while the screen is in use, one after the other in a thread. `rows` gives the
    requests of a recorded step, from a thread of its own; `recorded` is the recording as a history where the
    caller has made it. `ascii` keeps to 16 colours and 7-bit characters; `step` is where the cursor starts,
    by default the first exceeded one.
    """
    ReplayApp(recording, replays, rows=rows, recorded=recorded, ascii=ascii, step=step).run()
