"""What the replay screen is made of, and how it is brought up to date. What keys do is in `fdtrace.tui.app`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from textual import events
from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.timer import Timer
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.recorder.recording import Recording
from fdtrace.replayer.as_recorded import recorded_history
from fdtrace.replayer.history import History
from fdtrace.tui.answers import AnswerTable
from fdtrace.tui.background import Background, Cancelled, Deliver, Failed, guarded
from fdtrace.tui.board import Board
from fdtrace.tui.dialogs import Prompt
from fdtrace.tui.jobs import Job, Replay, Rows
from fdtrace.tui.keys import Count
from fdtrace.tui.pane import ChartPane
from fdtrace.tui.panel import InspectorPanel
from fdtrace.tui.player import Player
from fdtrace.tui.requests import ROWS_AT_ONCE, RequestTable, StepRows, describe
from fdtrace.tui.series import Series
from fdtrace.tui.sources import Sources
from fdtrace.tui.status import MESSAGE_STAYS, head_line, one_line, opening_line, with_hints
from fdtrace.tui.style import ANSI, ASCII, BLOCKS, DARK, LIGHT, Glyphs, Look
from fdtrace.tui.summary import Line, StepSummary
from fdtrace.tui.terminal import MODERN, Terminal

T = TypeVar("T")


class ReplayView(App[None]):
    """Shows a recording at once, and each replay of it when it is computed."""

    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #head { height: 1; padding: 0 1; text-style: bold; background: $panel; }
    #panes { height: 2fr; min-height: 8; }
    #requests { height: 1fr; min-height: 5; }
    #watches { height: 1; padding: 0 1; display: none; color: $text-accent; }
    #trouble { height: auto; max-height: 10; padding: 0 1; display: none; background: $surface;
               color: $text-error; }
    #ask { height: 1; padding: 0 1; display: none; background: $surface; }
    #ask-label { width: auto; padding: 0 1 0 0; text-style: bold; }
    #status { height: 1; padding: 0 1; background: $panel; link-style: none; link-color: $foreground;
              link-background-hover: $primary; link-style-hover: bold; }
    """
    TITLE = "fdtrace replay"
    AUTO_FOCUS = None

    def __init__(
        self,
        recording: Recording,
        replays: Sequence[Replay] = (),
        *,
        rows: Rows | None = None,
        recorded: History | None = None,
        terminal: Terminal = MODERN,
        step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sources: Sources | None = None,
    ) -> None:
        """`rows` gives the requests of a recorded step; `recorded` is the recording as a history, if made."""
        super().__init__()
        self.recording = recording
        self.sources = sources or Sources()
        rows = rows or self.sources.rows
        self.sources = replace(self.sources, rows=rows)
        self.ascii = terminal.ascii
        self.glyphs: Glyphs = ASCII if self.ascii else BLOCKS
        self.clock = clock
        history = recorded or recorded_history(recording, rows)
        if history.request_steps is None and self.sources.request_steps is not None:
            history = replace(history, request_steps=self.sources.request_steps)
        first = Job(Replay(history.name, history.how, lambda _progress, _cancelled: history))
        first.run()
        assert first.series is not None, first.error
        self.recorded: Series = first.series
        self.board = Board(self.recorded, [first, *map(Job, replays)], step)
        self.panes: list[ChartPane] = []
        self.count = Count()
        self.player = Player()
        self._backgrounds: list[Background[Any]] = []
        self._replays = self.background("replays", self._ended_job, self.show_failure, every=True)
        self._rows = self.background(
            "rows", self._deliver, self._rows_failed, finish_begun=True, wait=ROWS_AT_ONCE
        )
        self.prompt = Prompt()
        self.inspecting = self.answering = self.following = False
        self._message, self._said_at, self._unasked = "", float("-inf"), False
        self.live = ""
        """How a recording in progress stands, for the first line; empty: it is complete."""
        self.standstill = ""
        """How the engine of a recording in progress stands still, for the first line; empty: it does not."""
        self._opened_on = self.board.cursor if step is None and len(self.recorded.over) else None
        if self.ascii:
            self.theme = "ansi-light" if terminal.light else "ansi-dark"
        elif terminal.light:
            self.theme = "textual-light"
        self.prepare()

    def prepare(self) -> None:
        """What the parts of the screen start with, before anything is on it."""

    # What is on the screen

    def compose(self) -> ComposeResult:
        yield Static(self.head(), id="head", markup=False)
        self.panes = [ChartPane(job, self.look, id=f"pane-{at}") for at, job in enumerate(self.board.jobs)]
        yield Horizontal(*self.panes, id="panes")
        yield StepSummary(id="summary", markup=False)
        yield Static("", id="watches", markup=False)
        yield RequestTable(id="requests")
        yield AnswerTable(id="answers")
        yield InspectorPanel(id="inspector")
        yield Static("", id="trouble", markup=False)
        with Horizontal(id="ask"):
            yield Static("", id="ask-label", markup=False)
            yield self.prompt
        yield Static("", id="status", markup=False)

    def head(self) -> str:
        """The first line: the engine, and what limits it."""
        return head_line(self.TITLE, self.recording, self.recorded, self.glyphs, self.live, self.standstill)

    def on_mount(self) -> None:
        if self.ascii:
            for kind in (RequestTable, AnswerTable, InspectorPanel):
                self.query_one(kind).add_class("-ascii")
        self.theme_changed_signal.subscribe(self, lambda _theme: self.refresh_all())
        for job in self.board.jobs[1:]:
            self.compute(job)
        self.every(0.1, self._poll)
        self._ticker = self.every(1 / 30, self._tick, pause=True)
        self.refresh_all()

        self.begin()

    def begin(self) -> None:
        """Called once everything is on the screen."""

    def on_unmount(self) -> None:
        for job in self.board.jobs:
            job.cancel()
        self._ticker.stop()
        for background in self._backgrounds:
            background.close()

    def on_resize(self, _event: events.Resize) -> None:
        self.call_after_refresh(self.refresh_all)

    def look(self) -> Look:
        """The glyphs and the colours of the terminal's theme."""
        theme = self.current_theme
        return Look(self.glyphs, ANSI if theme.ansi else DARK if theme.dark else LIGHT)

    # Off the screen's thread, and by timers

    def background(self, name: str, deliver: Deliver[T], failed: Failed, **options: Any) -> Background[T]:
        """A thread for one kind of work, closed with the screen."""
        made = Background(name, deliver, failed, **options)
        self._backgrounds.append(made)
        return made

    def every(self, seconds: float, call: Callable[[], None], *, pause: bool = False) -> Timer:
        """Call something again and again; what fails there is shown on the bottom line."""
        return self.set_interval(seconds, lambda: guarded(call, self.show_failure), pause=pause)

    @property
    def busy(self) -> bool:
        """Whether something is still fetched for the screen."""
        return any(background.busy for background in self._backgrounds if background is not self._replays)

    # Replays, computed one after the other

    def _ended_job(self, _job: Job) -> None:
        self._poll()

    def _poll(self) -> None:
        """Show how far the replays are; take in those that ended."""
        for at, pane in enumerate(self.panes):
            job = pane.job
            if pane.seen != job.state:
                if job.state == "done" and job.series is not None:
                    pane.departs = job.series.departs_from(self.recorded) if at else None
                    self.board.widen(job.series)
                pane.seen = job.state
                with self.unasked():
                    self.refresh_all()
            elif job.state == "running" and pane.display:
                pane.redraw()

    def compute(self, job: Job) -> None:
        """Have a job computed, after those that were asked for before it."""

        def work(deliver: Deliver[Job], _cancelled: Cancelled) -> None:
            job.run()
            deliver(job)

        self._replays.want(work)

    def set_job(self, pane: ChartPane, job: Job) -> None:
        """Fill a pane with another job."""
        self.board.jobs[self.panes.index(pane)] = job
        pane.job, pane.departs, pane.seen = job, None, ""
        self.compute(job)
        self.refresh_all()

    def restart(self, pane: ChartPane) -> None:
        """Begin a replay anew."""
        self.set_job(pane, pane.job.again())

    def _tick(self) -> None:
        """Move on while it plays."""

    # Showing

    def refresh_all(self) -> None:
        """Show everything anew: which panes there are, their borders, their charts."""
        if not self.panes:
            return
        visible = self.board.visible(self.size.width)
        if self.board.active not in visible:
            self.board.active = visible[0]
        self.show_parts()
        for at, pane in enumerate(self.panes):
            pane.display = at in visible
            pane.number = visible.index(at) + 1 if at in visible and not self.board.alone else at + 1
            pane.active = at == self.board.active
            pane.set_class(pane.active, "-active")
            pane.redraw()
        self.show_view()

    def set_active(self, at: int) -> None:
        """Make a pane the active one."""
        if at != self.board.active:
            self.board.active = at
            self.refresh_all()

    def show_parts(self) -> None:
        """Which parts stand below the charts: the inspector, a query's rows, or the requests."""
        answering = self.answering and not self.inspecting
        self.query_one(InspectorPanel).display = self.inspecting
        self.query_one(AnswerTable).display = answering
        self.query_one(RequestTable).display = not self.inspecting and not answering
        self.query_one(StepSummary).display = not self.inspecting or self.size.height >= 40

    def show_view(self) -> None:
        """Show the window and the cursor."""
        self.show_window()
        self.show_step()

    def show_window(self) -> None:
        """Show the window, the step at the cursor being on the screen already."""
        board, scale = self.board, self.board.scale
        for pane in self.panes:
            if pane.display:
                pane.show(board.window, board.cursor, scale)

    def show_step(self) -> None:
        """Show the step at the cursor: the summary at once, its requests when they are fetched."""
        board = self.board
        lines = [
            Line(pane.number, pane.job.replay.name, pane.active, pane.series, pane.note)
            for pane in self.panes
            if pane.display
        ]
        summary = self.query_one(StepSummary)
        if not summary.display:
            self.show_status()
            return
        if summary.styles.height is None or summary.size.height != len(lines) + 1:
            summary.styles.height = len(lines) + 1
        summary.show(board.cursor, lines, self.look())
        self.show_status()
        self._want_rows()

    def _want_rows(self) -> None:
        pane, step = self.active_pane, self.board.cursor
        if pane.series is None or pane.series.index(step) is None:
            title = f"step {step} {self.glyphs.dot} {pane.job.replay.name}: not in this history"
            self.query_one(RequestTable).show((), title, self.look().palette)
            return
        series = pane.series

        def work(deliver: Deliver[StepRows], _cancelled: Cancelled) -> None:
            deliver(StepRows(series, step, series.history.rows(step)))

        self._rows.want(work)

    def _deliver(self, found: StepRows) -> None:
        series, rows = found.series, found.rows
        if series is self.active_pane.series:
            title = describe(found.step, series.name, rows, series.limit, self.glyphs)
            self.query_one(RequestTable).show(rows, title, self.look().palette)

    def _rows_failed(self, error: str) -> None:
        self.query_one(RequestTable).show((), one_line(error), self.look().palette)

    def show_failure(self, error: str) -> None:
        """Say on the bottom line what went wrong, and why."""
        self.show_status(one_line(error))

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """While something is shown that no key asked for: a message on the bottom line stays for a while."""
        self._unasked = True
        try:
            yield
        finally:
            self._unasked = False

    def show_status(self, message: str = "") -> None:
        """The bottom line: where one is, what was typed, and what may be typed."""
        board, window, glyphs = self.board, self.board.window, self.glyphs
        if message:
            self._message, self._said_at = message, self.clock()
        elif self._unasked and self.clock() - self._said_at < MESSAGE_STAYS:
            message = self._message
        else:
            self._message = ""
        if not message and self._opened_on is not None:
            if board.cursor == self._opened_on:
                message = opening_line(self.recorded, board.cursor)
            else:
                self._opened_on = None
        left = printable(message) or f"step {board.cursor} of {window.low}-{window.high - 1}"
        if not message and (window.start, window.end) != (window.low, window.high):
            left += f" {glyphs.dot} shows {window.start}-{window.end - 1}"
        if self.player.playing:
            left += f" {glyphs.dot} {'<<' if self.player.backwards else '>>'} {self.player.speed:g}/s"
        if self.following and self.live and not message:
            left += f" {glyphs.dot} following"
        if board.has_pages(self.size.width) and not board.alone:
            left += f" {glyphs.dot} ] more formulas"
        if self.count.pending:
            left = f"{self.count.pending} {glyphs.dot} {left}"
        line = with_hints(left, self.size.width - 2, ascii=self.ascii)
        self.query_one("#status", Static).update(line, layout=False)

    @property
    def active_pane(self) -> ChartPane:
        """The pane that `n`, `N` and the requests belong to."""
        return self.panes[self.board.active]
