"""Panes: which are on the screen, and formulas added, edited and removed while it runs."""

from __future__ import annotations

from textual.containers import Horizontal

from fdtrace.recorder.errors import UsageError
from fdtrace.tui.asking import Asking
from fdtrace.tui.jobs import Job, Replay
from fdtrace.tui.pane import ChartPane


class Paneling(Asking):
    """Shows panes, and makes new ones: their replays are computed while the screen is in use."""

    def action_pane(self, direction: int) -> None:
        """Make the next pane the active one."""
        self.count.clear()
        visible = list(range(len(self.panes))) if self.board.alone else self.board.visible(self.size.width)
        at = visible.index(self.board.active)
        self.set_active(visible[(at + direction) % len(visible)])

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
        elif self.live and pane is not self.panes[0] and pane.job.ended:
            self.restart(pane)
            self.show_status("replaying what is recorded by now")
        elif pane.job.ended:
            self.show_status("this pane is complete: there is nothing to stop")
            return
        else:
            pane.job.cancel()
        pane.redraw()

    # Formulas

    def add_formula(self, text: str) -> None:
        """Replay another formula in a pane of its own. UsageError says what is wrong with it."""
        replay = self._replay_of(text)
        self._no_other(replay, None)
        job = Job(replay)
        pane = ChartPane(job, self.look)
        self.board.jobs.append(job)
        self.panes.append(pane)
        self.query_one("#panes", Horizontal).mount(pane)
        self.board.active = len(self.panes) - 1
        self._show_page_of(self.board.active)
        self.compute(job)
        self.call_after_refresh(self.refresh_all)
        self.show_status(f"replaying {replay.name}; x stops it")

    def change_formula(self, text: str) -> None:
        """Replay another formula in the active pane."""
        pane = self.active_pane
        replay = self._replay_of(text)
        self._no_other(replay, pane)
        pane.job.cancel()
        self.set_job(pane, Job(replay))
        self.show_status(f"replaying {replay.name}; x stops it")

    def action_remove_formula(self) -> None:
        """Remove the active pane; the recording stays."""
        at = self.board.active
        if at == 0:
            self.show_status("the recording stays: Tab goes to a formula's pane")
            return
        pane = self.panes.pop(at)
        pane.job.cancel()
        del self.board.jobs[at]
        self.board.active = min(at, len(self.panes) - 1)
        self.board.alone = False
        pane.remove()
        self.call_after_refresh(self.refresh_all)
        self.show_status(f"removed {pane.job.replay.name}")

    def _replay_of(self, text: str) -> Replay:
        if self.sources.replay_of is None:
            raise UsageError("no formula can be added here", hint="open a trace with `fdtrace replay`")
        return self.sources.replay_of(text)

    def _no_other(self, replay: Replay, but: ChartPane | None) -> None:
        for pane in self.panes:
            if pane is not but and pane.job.replay.name == replay.name:
                raise UsageError(f"there is a pane {replay.name!r} already", hint="give it another name")

    def _show_page_of(self, at: int) -> None:
        """Turn to the page that a pane is on."""
        for page in range(len(self.panes)):
            self.board.page = page
            if at in self.board.visible(self.size.width):
                return
