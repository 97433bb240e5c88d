"""The screen as the tests open it: on the lab's `speculative` case, with a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static

from replayer.history import History
from tests.tui.recordings import lab_history, lab_recording, step_rows
from tui.app import ReplayApp
from tui.jobs import Cancelled, Progress, Replay
from tui.requests import RequestTable
from tui.summary import StepSummary

CASE = "speculative"


class Clock:
    """Seconds that stand still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ready_replay(history: History) -> Replay:
    """A replay that has nothing to compute."""

    def compute(_progress: Progress, _cancelled: Cancelled) -> History:
        return history

    return Replay(history.name, history.how, compute)


def lab_app(versions: Sequence[str] = ("pr7438", "pr7499"), **options: Any) -> ReplayApp:
    """The recording made under `original`, beside other versions of the formula."""
    replays = [ready_replay(lab_history(CASE, version)) for version in versions]
    options.setdefault("clock", Clock())
    return ReplayApp(lab_recording(CASE), replays, rows=step_rows(CASE, "original"), **options)


def of(pilot: Pilot[None]) -> ReplayApp:
    """The app under test."""
    assert isinstance(pilot.app, ReplayApp)
    return pilot.app


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Wait until something is so; fails after many turns of the event loop."""
    for _ in range(400):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.02)
    raise AssertionError("it did not happen")


async def settled(pilot: Pilot[None]) -> ReplayApp:
    """The app, once every replay is on the screen and the step's requests are."""
    app = of(pilot)
    await until(pilot, lambda: all(pane.job.ended and pane.seen == pane.job.state for pane in app.panes))
    await until(pilot, lambda: str(app.board.cursor) in title_of(app))
    return app


def title_of(app: ReplayApp) -> str:
    """The words over the requests."""
    return app.query_one(RequestTable).border_title or ""


def status_of(app: ReplayApp) -> str:
    """The bottom line."""
    return str(app.query_one("#status", Static).content)


def summary_of(app: ReplayApp) -> list[str]:
    """The lines of the step at the cursor."""
    return str(app.query_one(StepSummary).content).splitlines()
