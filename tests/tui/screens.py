"""The screen as the tests open it: on the lab's `speculative` case, with a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import parse_formula, replay_recording
from fdtrace.replayer.history.history import History, How
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.inspector.panel import InspectorPanel
from fdtrace.tui.panes.jobs import PaneReplay, ShareDone
from fdtrace.tui.sources import Sources
from fdtrace.tui.tables.requests import RequestTable
from fdtrace.tui.tables.step_summary import StepSummary
from tests.tui.recordings import case_recording, lab_history, lab_recording, step_rows

CASE = "speculative"


class Clock:
    """Seconds that stand still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ready_replay(history: History) -> PaneReplay:
    """A replay that has nothing to compute."""

    def compute(_progress: ShareDone, _cancelled: Cancelled) -> History:
        return history

    return PaneReplay(history.name, history.how, compute)


def lab_app(versions: Sequence[str] = ("pr7438", "pr7499"), **options: Any) -> ReplayApp:
    """The recording made under `original`, beside other versions of the formula."""
    replays = [ready_replay(lab_history(CASE, version)) for version in versions]
    options.setdefault("clock", Clock())
    return ReplayApp(lab_recording(CASE), replays, rows=step_rows(CASE, "original"), **options)


def formula_replay(recording: Recording, text: str, how: How = "rescheduled") -> PaneReplay:
    """A replay as `fdtrace replay -f` makes it."""
    formula = parse_formula(text)

    assert how != "recorded"

    def compute(progress: ShareDone, cancelled: Cancelled) -> History:
        def progressed(done: int, expected: int) -> None:
            progress(done / max(1, expected))

        done = replay_recording(recording, [formula], how, progressed=progressed, cancelled=cancelled)
        return done[1]

    return PaneReplay(formula.name, how, compute, formula, None, text)


def case_app(name: str, formulas: Sequence[str] = ("pr7438",), **options: Any) -> ReplayApp:
    """A case of the lab as a recording, with replays that the model computes."""
    recording, history = case_recording(name)
    events = options.pop("events", None)
    sources = Sources(
        rows=history.rows,
        request_steps=history.request_steps,
        events=events,
        sql=options.pop("sql", None),
        event_steps=options.pop("event_steps", None),
        replay_of=lambda text: formula_replay(recording, text),
    )
    options.setdefault("clock", Clock())
    replays = [formula_replay(recording, text) for text in formulas]
    return ReplayApp(recording, replays, sources=sources, **options)


async def quiet(pilot: Pilot[None]) -> ReplayApp:
    """The app, once no worker fetches anything for it."""
    app = of(pilot)
    await until(pilot, lambda: all(pane.job.ended and pane.seen == pane.job.state for pane in app.panes))
    await pilot.pause(0.05)
    await until(pilot, lambda: not app.busy)
    return app


def inspector_of(app: ReplayApp) -> str:
    """What the inspector says."""
    return app.query_one(InspectorPanel).text


def of(pilot: Pilot[None]) -> ReplayApp:
    """The app under test."""
    assert isinstance(pilot.app, ReplayApp)
    return pilot.app


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Wait until something is so; fails after many turns of the event loop. A turn costs the screen milliseconds."""
    for turn in range(700):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.02 if turn < 20 else 0.1)
    raise AssertionError("it did not happen")


async def settled(pilot: Pilot[None]) -> ReplayApp:
    """The app, once every replay is on the screen and the step's requests are."""
    app = of(pilot)
    await until(pilot, lambda: all(pane.job.ended and pane.seen == pane.job.state for pane in app.panes))
    await until(pilot, lambda: str(app.session.cursor) in title_of(app))
    return app


def title_of(app: ReplayApp) -> str:
    """The words over the requests."""
    return app.query_one(RequestTable).border_title or ""


def head_of(app: ReplayApp) -> str:
    """The first line."""
    return str(app.status.head.content)


def status_of(app: ReplayApp) -> str:
    """The bottom line."""
    return str(app.query_one("#status", Static).content)


def summary_of(app: ReplayApp) -> list[str]:
    """The lines of the step at the cursor."""
    return str(app.query_one(StepSummary).content).splitlines()
