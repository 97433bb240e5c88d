"""Breakpoints, watches and their list."""

from __future__ import annotations

from functools import partial

from textual.widgets import Static

from fdtrace.recorder.errors import UsageError
from fdtrace.tui.background import Cancelled, Deliver
from fdtrace.tui.breaks import BreakList
from fdtrace.tui.debug import Breakpoint, Breakpoints, Ints, Watches
from fdtrace.tui.dialogs import Ask
from fdtrace.tui.moving import Moving


class Debugging(Moving):
    """Stops at breakpoints, forwards and backwards, and shows watches."""

    def prepare(self) -> None:
        super().prepare()
        self.breaks = Breakpoints()
        self._event_steps = self.background("events", self._have_events, self.show_failure, every=True)
        self.watches = Watches()

    # Breakpoints

    def action_break_here(self) -> None:
        """A breakpoint on this step, or none."""
        self.take_count()
        self.toggle_break(self.board.cursor)

    def toggle_break(self, step: int) -> None:
        """Set a breakpoint on a step, or remove it."""
        there = self.breaks.toggle_step(step)
        self.show_status(f"breakpoint on step {step}" if there else f"no breakpoint on step {step}")
        self.show_breaks()

    def add_break(self, text: str) -> None:
        """Add a breakpoint. UsageError says what is wrong with it."""
        point = self.breaks.add(text)
        try:
            hits = self._hits(point)
        except UsageError:
            self.breaks.all.remove(point)
            raise
        self._read_events(point)
        series = self.active_pane.series
        where = f"{hits} stops in {self.active_pane.job.replay.name}" if series is not None else "set"
        self.show_status(f"breakpoint {point.text}: {where}")
        self.show_breaks()

    def _hits(self, point: Breakpoint) -> int:
        series = self.active_pane.series
        return 0 if series is None else len(point.hits(series, self.recording))

    def _read_events(self, point: Breakpoint) -> None:
        """The steps of an event that only the trace knows: read in a worker."""
        source = self.sources.event_steps
        columns = self.recorded.history.columns
        if point.kind != "event" or source is None or f"num_{point.text}" in columns:
            return
        if point.text in ("exceeded", "hang", "not_admitted", "arrived"):
            return

        def work(deliver: Deliver[tuple[Breakpoint, Ints]], _cancelled: Cancelled) -> None:
            deliver((point, source(point.text)))

        self._event_steps.want(work)

    def _have_events(self, read: tuple[Breakpoint, Ints]) -> None:
        point, found = read
        first, point.recorded = point.recorded is None, found
        point.forget()
        if first:
            self.show_status(f"breakpoint {point.text}: {len(found)} steps of the recording")
            self.show_breaks()

    def read_events_anew(self) -> None:
        """The recording has grown: read again where its events are."""
        if not self._event_steps.busy:
            for point in self.breaks.all:
                self._read_events(point)

    def show_breaks(self) -> None:
        """Show the steps of breakpoints on the charts' axes."""
        for pane in self.panes:
            pane.breaks = tuple(
                int(point.text) for point in self.breaks.all if point.kind == "step" and point.enabled
            )
            pane.redraw()

    def action_continue(self, direction: int) -> None:
        """On to the next breakpoint, or back to the one before, in the active pane."""
        self.take_count()
        series = self.active_pane.series
        if not any(point.enabled for point in self.breaks.all):
            self.show_status("no breakpoint: b sets one here, :b CONDITION where something holds")
            return
        if series is None:
            self.show_status("this pane has no history yet")
            return
        found = self.breaks.next(series, self.recording, self.board.cursor, direction)
        if found is None:
            self.show_status(f"no breakpoint {'after' if direction > 0 else 'before'} this step in this pane")
            return
        self.go(found[0], f"breakpoint: {found[1].text}", jump=True)

    def stop_between(self, step: int, due: int) -> int | None:
        series = self.active_pane.series
        if series is None:
            return None
        direction = 1 if due > step else -1
        found = self.breaks.next(series, self.recording, step, direction)
        return found[0] if found is not None and (due - found[0]) * direction >= 0 else None

    def stopped_by(self, step: int) -> str:
        series = self.active_pane.series
        if series is None:
            return ""
        return ", ".join(point.text for point in self.breaks.at(series, self.recording, step))

    def action_break_list(self) -> None:
        """The list of breakpoints, and of watches."""
        series = self.active_pane.series
        counts = {id(point): self._hits(point) if series is not None else 0 for point in self.breaks.all}
        screen = BreakList(self.breaks, self.watches, counts, "-ascii" if self.ascii else "")
        self.push_screen(screen, self._listed)

    def _listed(self, chosen: tuple[str, str] | None) -> None:
        """What the list was left for: to add one, to edit one, or nothing."""
        self.show_breaks()
        self.show_watches()
        if chosen is None:
            return
        what, text = chosen
        if what == "go":
            self.go(int(text), jump=True)
            return
        self.call_after_refresh(partial(self.ask, "watch" if what == "watch" else "break", text))

    def ask(self, kind: Ask, text: str = "") -> None:
        """Ask for something on the bottom line."""
        raise NotImplementedError

    # Watches

    def toggle_watch(self, text: str) -> None:
        """Watch an expression, or watch it no longer. UsageError says what is wrong with it."""
        there = self.watches.toggle(text)
        self.show_watches()
        self.show_status(f"watching {text}" if there else f"{text} is watched no longer")

    def show_watches(self) -> None:
        """A line a watch: its value in each pane."""
        widget = self.query_one("#watches", Static)
        widget.display = bool(self.watches.all)
        if not self.watches.all:
            return
        panes = [pane for pane in self.panes if pane.display]
        lines = []
        for text, values in self.watches.values([pane.series for pane in panes], self.board.cursor):
            shown = "  ".join(f"{pane.number} {value}" for pane, value in zip(panes, values, strict=True))
            lines.append(f"{text} = {shown}")
        widget.styles.height = len(lines)
        widget.update("\n".join(lines), layout=False)

    def show_step(self) -> None:
        super().show_step()
        self.show_watches()
