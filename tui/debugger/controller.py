"""The debugger's keys: set and list breakpoints, go to them, show watches."""

from __future__ import annotations

from functools import partial

from textual.app import ComposeResult
from textual.widgets import Static

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import Ints
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.debugger.breakpoint_list import BreakList
from fdtrace.tui.debugger.breakpoints import COLUMN_EVENTS, Breakpoint, Breakpoints
from fdtrace.tui.debugger.watches import Watches
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.prompt.prompt import Ask
from fdtrace.tui.screen_protocol import Prompter, ReplayScreen


class Debugger:
    """Goes to breakpoints, forwards and backwards, and shows watches."""

    def __init__(self, screen: ReplayScreen, panes: Panes, prompt: Prompter, count: CountPrefix) -> None:
        self.screen, self.panes, self.prompt, self.count = screen, panes, prompt, count
        self.breaks = Breakpoints()
        self.watches = Watches()
        self._shown = Static("", id="watches", markup=False)
        self._event_steps = screen.background("events", self._events_read, screen.fail, every=True)

    def compose(self) -> ComposeResult:
        """The lines of the watches."""
        yield self._shown

    # Breakpoints

    def break_here(self) -> None:
        """Set a breakpoint on the step at the cursor, or remove it."""
        self.count.clear()
        self.toggle_break(self.screen.session.cursor)

    def toggle_break(self, step: int) -> None:
        """Set a breakpoint on a step, or remove it."""
        is_set = self.breaks.toggle_step(step)
        self.screen.say(f"breakpoint on step {step}" if is_set else f"no breakpoint on step {step}")
        self.show_breaks()

    def add_break(self, text: str) -> None:
        """Add a breakpoint. UsageError says what is wrong with the text."""
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
        """Read from the trace the steps of a kind of event that no column has."""
        source = self.screen.session.sources.event_steps
        columns = self.screen.session.recorded.history.columns
        if point.kind != "event" or source is None or f"num_{point.text}" in columns:
            return
        if point.text in COLUMN_EVENTS:
            return

        def work(deliver: Deliver[tuple[Breakpoint, Ints]], _cancelled: Cancelled) -> None:
            deliver((point, source(point.text)))

        self._event_steps.want(work)

    def _events_read(self, result: tuple[Breakpoint, Ints]) -> None:
        point, steps = result
        first_time, point.recorded = point.recorded is None, steps
        point.forget()
        if first_time:
            self.screen.say(f"breakpoint {point.text}: {len(steps)} steps of the recording")
            self.show_breaks()

    def reread_events(self) -> None:
        """The recording has grown: read the steps of its events again."""
        if not self._event_steps.busy:
            for point in self.breaks.all:
                self._read_events(point)

    def show_breaks(self) -> None:
        """Mark the steps of breakpoints on the charts' axes."""
        self.panes.mark(
            [int(point.text) for point in self.breaks.all if point.kind == "step" and point.enabled]
        )

    def to_breakpoint(self, direction: int) -> None:
        """Go to the next breakpoint in the active pane, or to the previous one (`direction` -1)."""
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
        """The texts of the breakpoints that stop at a step."""
        series = self.panes.current.series
        if series is None:
            return ""
        points = self.breaks.at(series, self.screen.session.recording, step)
        return ", ".join(point.text for point in points)

    def break_list(self) -> None:
        """Open the list of breakpoints and watches."""
        series = self.panes.current.series
        counts = {id(point): self._hits(point) if series is not None else 0 for point in self.breaks.all}
        dialog = BreakList(self.breaks, self.watches, counts, self.screen.look().css_class)
        self.screen.open_dialog(dialog, self._list_closed)

    def _list_closed(self, result: tuple[str, str] | None) -> None:
        """Do what the list was closed with: go to a step, ask for a new text, or nothing."""
        self.show_breaks()
        self.show_watches()
        if result is None:
            return
        action, text = result
        if action == "go":
            self.screen.go(int(text), jump=True)
            return
        kind: Ask = "watch" if action == "watch" else "break"
        self.screen.call_after_refresh(partial(self.prompt.ask, kind, text))

    # Watches

    def ask_watch(self) -> None:
        """Ask for an expression to watch."""
        self.prompt.ask("watch")

    def toggle_watch(self, text: str) -> None:
        """Watch an expression, or stop watching it. UsageError says what is wrong with it."""
        is_watched = self.watches.toggle(text)
        self.show_watches()
        self.screen.say(f"watching {text}" if is_watched else f"{text} is watched no longer")

    def show_watches(self) -> None:
        """Show one line for each watch: its value at the cursor in each pane."""
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
