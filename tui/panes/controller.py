"""The panes: which are on the screen, what is computed for them, and how formulas are added, edited, removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.history.history import History
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.panes.chart_pane import ChartPane
from fdtrace.tui.panes.jobs import Job, PaneReplay
from fdtrace.tui.panes.series import Series, absence_text
from fdtrace.tui.screen_protocol import Prompter, ReplayScreen
from fdtrace.tui.status_lines import StatusLines

POLL = 0.1
"""Seconds between two updates of the replays' progress."""


class Panes:
    """The panes in order; the recording's pane is the first. Their replays are computed one after the other."""

    def __init__(
        self, screen: ReplayScreen, status: StatusLines, prompt: Prompter, count: CountPrefix
    ) -> None:
        self.screen, self.status, self.prompt, self.count = screen, status, prompt, count
        self.widgets: list[ChartPane] = []
        self._box = Horizontal(id="panes")
        self._replays = screen.background("replays", self._job_ended, screen.fail, every=True)

    def compose(self) -> ComposeResult:
        """A chart for each job."""
        jobs = self.screen.session.jobs
        self.widgets = [ChartPane(job, self.screen.look, id=f"pane-{at}") for at, job in enumerate(jobs)]
        with self._box:
            yield from self.widgets

    def begin(self) -> None:
        """Compute the replays, and show their progress."""
        for job in self.screen.session.jobs[1:]:
            self.compute(job)
        self.screen.every(POLL, self.poll)

    def close(self) -> None:
        """Stop all computations."""
        for job in self.screen.session.jobs:
            job.cancel()

    def __iter__(self) -> Iterator[ChartPane]:
        return iter(self.widgets)

    def __len__(self) -> int:
        return len(self.widgets)

    def __getitem__(self, at: int) -> ChartPane:
        return self.widgets[at]

    def index(self, pane: ChartPane) -> int:
        """The index of a pane."""
        return self.widgets.index(pane)

    @property
    def current(self) -> ChartPane:
        """The active pane. `n`, `N` and the table of requests belong to it."""
        return self.widgets[self.screen.session.active]

    @property
    def visible(self) -> list[int]:
        """The indices of the panes on the screen."""
        return self.screen.session.visible(self.screen.size.width)

    def absence_text(self, pane: ChartPane, step: int) -> str:
        """Why a pane has nothing to show at a step; empty: it has something."""
        if pane.series is not None and pane.series.index(step) is not None:
            return ""
        replayed = bool(self.status.live) and pane is not self.widgets[0]
        return pane.note or absence_text(pane.series, step, live=replayed)

    # Replays

    def compute(self, job: Job) -> None:
        """Compute a job in the background, after the jobs requested before."""

        def work(deliver: Deliver[Job], _cancelled: Cancelled) -> None:
            job.run()
            deliver(job)

        self._replays.want(work)

    def _job_ended(self, _job: Job) -> None:
        self.poll()

    def poll(self) -> None:
        """Show the progress of the replays, and the results of those that ended."""
        for index, pane in enumerate(self.widgets):
            job = pane.job
            if pane.seen != job.state:
                if job.state == "done" and job.series is not None:
                    recorded = self.screen.session.recorded
                    pane.departs = job.series.departs_from(recorded) if index else None
                    self.screen.session.widen(job.series)
                pane.seen = job.state
                self.show_again()
            elif job.state == "running" and pane.display:
                pane.redraw()

    def set_job(self, pane: ChartPane, job: Job) -> None:
        """Give a pane another job."""
        self.screen.session.jobs[self.index(pane)] = job
        pane.job, pane.departs, pane.seen = job, None, ""
        self.compute(job)
        self.screen.show_all()

    def restart(self, pane: ChartPane) -> None:
        """Start a replay again."""
        self.set_job(pane, pane.job.again())

    def restart_all(self) -> None:
        """Start every replay again, because the recording has changed."""
        for pane in self.widgets[1:]:
            pane.job.cancel()
            self.restart(pane)

    def set_recorded(self, history: History, series: Series) -> None:
        """Show the recording so far."""
        pane = self.widgets[0]
        pane.job = self.screen.session.jobs[0] = pane.job.filled(history, series)
        pane.seen = "done"
        for shown in self.widgets:
            shown.retitle()
        pane.redraw()

    # Showing

    def show(self) -> None:
        """Show the visible panes, and draw them again."""
        session, visible = self.screen.session, self.visible
        if session.active not in visible:
            session.active = visible[0]
        for at, pane in enumerate(self.widgets):
            pane.display = at in visible
            pane.number = visible.index(at) + 1 if at in visible and not session.alone else at + 1
            pane.active = at == session.active
            pane.set_class(pane.active, "-active")
            pane.redraw()

    def show_again(self) -> None:
        """Show everything again without a key press: the message of the bottom line stays."""
        if self.widgets:
            with self.status.unasked():
                self.screen.show_all()

    def show_window(self) -> None:
        """Show the session's window in each visible pane."""
        session, scale = self.screen.session, self.screen.session.scale
        for pane in self.widgets:
            if pane.display:
                pane.show(session.window, session.cursor, scale)

    def move_cursor(self) -> None:
        """Show the cursor in each visible pane; the window has not changed."""
        for pane in self.widgets:
            if pane.display:
                pane.move_cursor(self.screen.session.cursor)

    def mark(self, steps: Sequence[int]) -> None:
        """Mark the steps with a breakpoint on the axes."""
        for pane in self.widgets:
            pane.breaks = tuple(steps)
            pane.redraw()

    def activate(self, at: int) -> None:
        """Make a pane the active one."""
        if at != self.screen.session.active:
            self.screen.session.active = at
            self.screen.show_all()

    def activate_number(self, number: int) -> None:
        """Make the pane with this number on the screen the active one."""
        places = list(range(len(self.widgets))) if self.screen.session.alone else self.visible
        if 0 < number <= len(places):
            self.activate(places[number - 1])

    # Keys

    def pane(self, direction: int) -> None:
        """Make the next pane the active one."""
        self.count.clear()
        session = self.screen.session
        places = list(range(len(self.widgets))) if session.alone else self.visible
        self.activate(places[(places.index(session.active) + direction) % len(places)])

    def page(self, direction: int) -> None:
        """Show another page of formulas beside the recording."""
        self.screen.session.page += direction
        self.screen.show_all()

    def maximise(self) -> None:
        """Show the active pane alone, or all panes again."""
        self.count.clear()
        self.screen.session.alone = not self.screen.session.alone
        self.screen.show_all()

    def cancel(self) -> None:
        """Stop a replay, or start a stopped or failed one again."""
        pane = self.current
        if pane.job.state in ("failed", "cancelled"):
            self.restart(pane)
        elif self.status.live and pane is not self.widgets[0] and pane.job.ended:
            self.restart(pane)
            self.screen.say("replaying what is recorded by now")
        elif pane.job.ended:
            self.screen.say("this pane is complete: there is nothing to stop")
            return
        else:
            pane.job.cancel()
        pane.redraw()

    def remove_formula(self) -> None:
        """Remove the active pane. The recording's pane cannot be removed."""
        session = self.screen.session
        at = session.active
        if at == 0:
            self.screen.say("the recording stays: Tab goes to a formula's pane")
            return
        pane = self.widgets.pop(at)
        pane.job.cancel()
        del session.jobs[at]
        session.active = min(at, len(self.widgets) - 1)
        session.alone = False
        pane.remove()
        self.screen.call_after_refresh(self.show_again)
        self.screen.say(f"removed {pane.job.replay.name}")

    # Formulas

    def ask_formula(self) -> None:
        """Ask for a formula to add."""
        self.prompt.ask("add")

    def edit_formula(self) -> None:
        """Ask for a new formula for the active pane."""
        replay = self.current.job.replay
        if replay.how == "recorded":
            self.screen.say("the recording has no formula to edit: A adds one beside it")
            return
        self.prompt.ask("edit", replay.text or replay.name)

    def add_formula(self, text: str) -> None:
        """Replay another formula in a new pane. UsageError says what is wrong with the formula."""
        session, replay = self.screen.session, self._replay_of(text)
        self._refuse_equal_name(replay, None)
        job = Job(replay)
        pane = ChartPane(job, self.screen.look)
        session.jobs.append(job)
        self.widgets.append(pane)
        self._box.mount(pane)
        session.active = len(self.widgets) - 1
        self._show_page_of(session.active)
        self.compute(job)
        self.screen.call_after_refresh(self.show_again)
        self.screen.say(f"replaying {replay.name}; x stops it")

    def change_formula(self, text: str) -> None:
        """Replay another formula in the active pane. UsageError says what is wrong with the formula."""
        pane = self.current
        replay = self._replay_of(text)
        self._refuse_equal_name(replay, pane)
        pane.job.cancel()
        self.set_job(pane, Job(replay))
        self.screen.say(f"replaying {replay.name}; x stops it")

    def _replay_of(self, text: str) -> PaneReplay:
        replay_of = self.screen.session.sources.replay_of
        if replay_of is None:
            raise UsageError("no formula can be added here", hint="open a trace with `fdtrace replay`")
        return replay_of(text)

    def _refuse_equal_name(self, replay: PaneReplay, except_pane: ChartPane | None) -> None:
        for pane in self.widgets:
            if pane is not except_pane and pane.job.replay.name == replay.name:
                raise UsageError(f"there is a pane {replay.name!r} already", hint="give it another name")

    def _show_page_of(self, at: int) -> None:
        """Go to the page of a pane."""
        for page in range(len(self.widgets)):
            self.screen.session.page = page
            if at in self.visible:
                return
