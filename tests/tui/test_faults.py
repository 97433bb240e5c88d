"""Whatever fails behind the screen is shown where it was asked for, with what and why; the screen goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot

from fdtrace.recorder.errors import FdtraceError, TraceError
from fdtrace.replayer.history import as_recorded
from fdtrace.replayer.history.history import History
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui import live
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.panes.jobs import PaneReplay, ShareDone
from fdtrace.tui.sources import NewSteps, Sources
from fdtrace.tui.status_lines import one_line
from tests.tui.recordings import case_recording, lab_recording
from tests.tui.screens import Clock, formula_replay, head_of, inspector_of, quiet, status_of, title_of, until

SIZE = (140, 40)
ERRORS = [
    (
        TraceError("no trace", why="somebody removed it", hint="open it"),
        "no trace: somebody removed it; next: open it",
    ),
    (RuntimeError("a slip of ours"), "unexpected RuntimeError: a slip of ours"),
    (SystemExit(1), "unexpected SystemExit: 1"),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def source(*_given: object) -> Any:
        raise error

    return source


def app_with(**sources: Callable[..., Any]) -> ReplayApp:
    """A screen some of whose sources fail."""
    recording, history = case_recording("tight_blocks")
    known: dict[str, Any] = {"rows": history.rows, "request_steps": history.request_steps}
    replays = [formula_replay(recording, "pr7499")]
    return ReplayApp(recording, replays, sources=Sources(**{**known, **sources}), clock=Clock())


async def goes_on(pilot: Pilot[None], app: ReplayApp) -> None:
    """The screen still does what keys ask for."""
    cursor = app.session.cursor
    await pilot.press("l", "l")
    assert app.session.cursor == cursor + 2


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_rows_that_cannot_be_read(error: BaseException, said: str) -> None:
    async with app_with(rows=raising(error)).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        assert said in title_of(app)
        await pilot.press("enter")
        await until(pilot, lambda: said.split(":", maxsplit=1)[0] in inspector_of(app))
        assert "this history has no such step" not in inspector_of(app)
        await goes_on(pilot, app)


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_events_that_cannot_be_read(error: BaseException, said: str) -> None:
    """The recording's column says so; the formula beside it is inspected all the same."""
    async with app_with(events=raising(error), event_steps=raising(error)).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("colon", *"b finished", "enter")
        await until(pilot, lambda: said in status_of(app))
        await pilot.press("enter")
        await until(
            pilot, lambda: said.split(":", maxsplit=1)[0] in inspector_of(app) and "= " in inspector_of(app)
        )
        await goes_on(pilot, app)


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_a_story_that_cannot_be_read(error: BaseException, said: str) -> None:
    async with app_with(request_steps=raising(error)).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("j", "r")
        await until(pilot, lambda: said in status_of(app))
        await goes_on(pilot, app)


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_a_query_that_fails(error: BaseException, said: str) -> None:
    async with app_with(sql=raising(error)).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("S", *"FROM step", "enter")
        await until(pilot, lambda: app.prompt.opened)
        trouble = str(app.query_one("#trouble").render())
        assert said.split(":", maxsplit=1)[0] in trouble
        await pilot.press("escape")
        await goes_on(pilot, app)


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_a_replay_that_fails(error: BaseException, said: str) -> None:
    def compute(_progress: ShareDone, _cancelled: Cancelled) -> History:
        raise error

    recording, history = case_recording("tight_blocks")
    replays = [PaneReplay("mine", "rescheduled", compute), formula_replay(recording, "pr7499")]
    app = ReplayApp(recording, replays, rows=history.rows, clock=Clock())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.panes[2].seen == "done")
        assert app.panes[1].seen == "failed"
        assert said.split(":", maxsplit=1)[0] in app.panes[1].job.error
        await goes_on(pilot, app)


@pytest.mark.parametrize(("error", "said"), ERRORS)
async def test_a_look_at_a_recording_in_progress_that_fails(error: BaseException, said: str) -> None:
    recording = lab_recording()
    count, failing = [60], [error]

    def tail(step: int) -> NewSteps:
        if failing:
            raise failing[0]
        at = int(np.searchsorted(recording.steps["step"], step, side="right"))
        return NewSteps({name: column[at : count[0]] for name, column in recording.steps.items()}, live=True)

    first = recording.with_steps({name: column[:20] for name, column in recording.steps.items()})
    app = ReplayApp(first, sources=Sources(tail=tail, recording=lambda: recording), clock=Clock())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: said in status_of(app))
        assert "RECORDING, cannot be read now" in head_of(app)
        await pilot.resize_terminal(130, 38)
        await until(pilot, lambda: app.size.width == 130)
        await pilot.pause(0.2)
        assert said in status_of(app), "the screen is shown anew, and the message stays"
        await pilot.press("h", "h")
        failing.clear()
        await until(pilot, lambda: len(app.session.recorded) == 60)
        assert head_of(app).endswith("RECORDING")


async def test_a_growth_that_cannot_be_shown_is_shown_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read already is neither lost nor there twice."""
    recording, made = lab_recording(), as_recorded.recorded_history
    failing = [RuntimeError("no history"), RuntimeError("no history")]

    def recorded_history(*given: Any) -> History:
        if failing:
            raise failing.pop()
        return made(*given)

    def tail(step: int) -> NewSteps:
        at = int(np.searchsorted(recording.steps["step"], step, side="right"))
        return NewSteps(
            {name: column[at : max(at, 60)] for name, column in recording.steps.items()}, live=True
        )

    monkeypatch.setattr(live, "recorded_history", recorded_history)
    first = recording.with_steps({name: column[:20] for name, column in recording.steps.items()})
    app = ReplayApp(first, sources=Sources(tail=tail), clock=Clock())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.session.recorded) == 60)
        assert not failing
        assert np.array_equal(app.session.recorded.step, recording.steps["step"][:60])


async def test_a_breakpoint_that_cannot_be_computed_is_said() -> None:
    """It was set while its pane had no history yet, or held in all that was recorded then."""
    recording, history = case_recording("tight_blocks")
    app = ReplayApp(recording, rows=history.rows, clock=Clock())
    async with app.run_test(size=SIZE) as pilot:
        await quiet(pilot)
        app.debugger.breaks.add("100 / num_stalled > 2")
        await pilot.press("g", "c")
        assert "cannot be computed" in status_of(app)
        assert "num_stalled is 0" in status_of(app)
        await pilot.press("B")
        assert "cannot be computed" in status_of(app)
        await goes_on(pilot, app)
        await pilot.press("space")
        clock = app.clock
        assert isinstance(clock, Clock)
        clock.now += 5
        await until(pilot, lambda: not app.navigation.player.playing)
        assert "cannot be computed" in status_of(app)


def test_every_error_of_ours_says_what_why_and_next_in_one_line() -> None:
    error = FdtraceError("what", why="why", hint="next")
    assert one_line(str(error)) == "what: why; next: next"
    assert one_line("a\n  b") == "a b"
