"""Breakpoints and watches: set, listed, gone to, shown."""

from __future__ import annotations

from functools import partial

from fdtrace.recorder.trace.column_values import Ints
from textual.app import ComposeResult
from textual.widgets import Static

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.debugger.breakpoint_list import BreakList
from fdtrace.tui.debugger.breakpoints import COLUMN_EVENTS, Breakpoint, Breakpoints
from fdtrace.tui.debugger.watches import Watches
from fdtrace.tui.navigation.counts import Count
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.prompt.prompt import Ask
from fdtrace.tui.screen import Asks, ReplayScreen


class Debugger:
    """Stops at breakpoints, forwards and backwards, and shows watches."""

    def __init__(self, screen: ReplayScreen, panes: Panes, prompt: Asks, count: Count) -> None:
        self.screen, self.panes, self.prompt, self.count = screen, panes, prompt, count
        self.breaks = Breakpoints()
        self.watches = Watches()
        self._shown = Static("", id="watches", markup=False)
        self._event_steps = screen.background("events", self._have_events, screen.fail, every=True)

    def compose(self) -> ComposeResult:
        """The lines of the watches."""
        yield self._shown

    # Breakpoints

    def break_here(self) -> None:
        """A breakpoint on this step, or none."""
        self.count.clear()
        self.toggle_break(self.screen.session.cursor)

    def toggle_break(self, step: int) -> None:
        """Set a breakpoint on a step, or remove it."""
        there = self.breaks.toggle_step(step)
        self.screen.say(f"breakpoint on step {step}" if there else f"no breakpoint on step {step}")
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
        pane = self.panes.current
        where = f"{hits} stops in {pane.job.replay.name}" if pane.series is not None else "set"
        self.screen.say(f"breakpoint {point.text}: {where}")
        self.show_breaks()

    def _hits(self, point: Breakpoint) -> int:
        series = self.panes.current.series
        return 0 if series is None else len(point.hits(series, self.screen.session.recording))

    def _read_events(self, point: Breakpoint) -> None:
        """The steps of an event that only the trace knows."""
        source = self.screen.session.sources.event_steps
        columns = self.screen.session.recorded.history.columns
        if point.kind != "event" or source is None or f"num_{point.text}" in columns:
            return
        if point.text in COLUMN_EVENTS:
            return

        def work(deliver: Deliver[tuple[Breakpoint, Ints]], _cancelled: Cancelled) -> None:
            deliver((point, source(point.text)))

        self._event_steps.want(work)

    def _have_events(self, read: tuple[Breakpoint, Ints]) -> None:
        point, steps = read
        first, point.recorded = point.recorded is None, steps
        point.forget()
        if first:
            self.screen.say(f"breakpoint {point.text}: {len(steps)} steps of the recording")
            self.show_breaks()

    def read_events_anew(self) -> None:
        """The recording has grown: read again where its events are."""
        if not self._event_steps.busy:
            for point in self.breaks.all:
                self._read_events(point)

    def show_breaks(self) -> None:
        """Show the steps of breakpoints on the charts' axes."""
        self.panes.mark(
            [int(point.text) for point in self.breaks.all if point.kind == "step" and point.enabled]
        )

    def to_breakpoint(self, direction: int) -> None:
        """On to the next breakpoint, or back to the one before, in the active pane."""
        self.count.clear()
        series, session = self.panes.current.series, self.screen.session
        if not any(point.enabled for point in self.breaks.all):
            self.screen.say("no breakpoint: b sets one here, :b CONDITION where something holds")
            return
        if series is None:
            self.screen.say("this pane has no history yet")
            return
        stop = self.breaks.next(series, session.recording, session.cursor, direction)
        if stop is None:
            where = "after" if direction > 0 else "before"
            self.screen.say(f"no breakpoint {where} this step in this pane")
            return
        self.screen.go(stop[0], f"breakpoint: {stop[1].text}", jump=True)

    def stop_between(self, step: int, due: int) -> int | None:
        """The first breakpoint between two steps, the second one included."""
        series = self.panes.current.series
        if series is None:
            return None
        direction = 1 if due > step else -1
        stop = self.breaks.next(series, self.screen.session.recording, step, direction)
        return stop[0] if stop is not None and (due - stop[0]) * direction >= 0 else None

    def stopped_by(self, step: int) -> str:
        """The breakpoints that a step is a stop of."""
        series = self.panes.current.series
        if series is None:
            return ""
        points = self.breaks.at(series, self.screen.session.recording, step)
        return ", ".join(point.text for point in points)

    def break_list(self) -> None:
        """The list of breakpoints, and of watches."""
        series = self.panes.current.series
        counts = {id(point): self._hits(point) if series is not None else 0 for point in self.breaks.all}
        dialog = BreakList(self.breaks, self.watches, counts, self.screen.look().css_class)
        self.screen.open_dialog(dialog, self._listed)

    def _listed(self, chosen: tuple[str, str] | None) -> None:
        """What the list was left for: to go to a step, to add or edit, or nothing."""
        self.show_breaks()
        self.show_watches()
        if chosen is None:
            return
        what, text = chosen
        if what == "go":
            self.screen.go(int(text), jump=True)
            return
        kind: Ask = "watch" if what == "watch" else "break"
        self.screen.call_after_refresh(partial(self.prompt.ask, kind, text))

    # Watches

    def ask_watch(self) -> None:
        """Ask for an expression to watch."""
        self.prompt.ask("watch")

    def toggle_watch(self, text: str) -> None:
        """Watch an expression, or watch it no longer. UsageError says what is wrong with it."""
        there = self.watches.toggle(text)
        self.show_watches()
        self.screen.say(f"watching {text}" if there else f"{text} is watched no longer")

    def show_watches(self) -> None:
        """A line a watch: its value in each pane at the cursor."""
        self._shown.display = bool(self.watches.all)
        if not self.watches.all:
            return
        panes = [pane for pane in self.panes if pane.display]
        lines = []
        values_of = self.watches.values([pane.series for pane in panes], self.screen.session.cursor)
        for text, values in values_of:
            shown = "  ".join(f"{pane.number} {value}" for pane, value in zip(panes, values, strict=True))
            lines.append(f"{text} = {shown}")
        self._shown.styles.height = len(lines)
        self._shown.update("\n".join(lines), layout=False)
