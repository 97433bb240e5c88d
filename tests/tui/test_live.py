"""A recording in progress: the screen takes it in, and follows until the first step back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from textual.widgets import Static

from fdtrace.recorder.trace.recording import Recording
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.sources import NewSteps, Sources
from tests.tui.recordings import history_of, lab_history, lab_recording
from tests.tui.screens import Clock, ready_replay, status_of, summary_of, until

WHOLE = lab_recording()
STEPS = WHOLE.steps["step"]


def part(count: int) -> Recording:
    """The recording when it had so many steps."""
    return replace(WHOLE, steps={name: column[:count] for name, column in WHOLE.steps.items()})


class Growing:
    """A recording that has as many steps as it is let."""

    def __init__(self, count: int) -> None:
        self.count, self.live = count, True
        self.asked: list[int] = []

    def tail(self, step: int) -> NewSteps:
        self.asked.append(step)
        at = int(np.searchsorted(STEPS, step, side="right"))
        steps: dict[str, Any] = {name: column[at : self.count] for name, column in WHOLE.steps.items()}
        return NewSteps(steps, self.live)

    def recording(self) -> Recording:
        return part(self.count)

    def app(self) -> ReplayApp:
        sources = Sources(tail=self.tail, recording=self.recording)
        replays = [ready_replay(lab_history("speculative", "pr7499"))]
        return ReplayApp(part(self.count), replays, sources=sources, clock=Clock())


async def test_it_follows_until_the_first_step_back() -> None:
    growing = Growing(20)
    async with growing.app().run_test(size=(100, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, ReplayApp)
        await until(pilot, lambda: app.session.cursor == STEPS[19])
        assert "RECORDING" in str(app.query_one("#head", Static).content)
        assert "following" in status_of(app)
        growing.count = 60
        await until(pilot, lambda: len(app.session.recorded) == 60)
        assert app.session.cursor == STEPS[59]
        over = int((WHOLE.steps["num_tokens"][:60] > 1024).sum())
        assert f"{over} of 60" in (app.panes[0].border_subtitle or "")
        await pilot.press("h")
        growing.count = 100
        await until(pilot, lambda: len(app.session.recorded) == 100)
        assert app.session.cursor == STEPS[59] - 1
        assert "following" not in status_of(app)
        await pilot.press("F")
        assert app.session.cursor == STEPS[99]
        growing.count = 130
        await until(pilot, lambda: app.session.cursor == STEPS[129])
        assert np.array_equal(app.session.recorded.tokens, WHOLE.steps["num_tokens"][:130])


async def test_when_it_ends_all_of_it_is_replayed() -> None:
    growing = Growing(20)
    async with growing.app().run_test(size=(100, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, ReplayApp)
        await until(pilot, lambda: app.panes[1].seen == "done")
        before = app.panes[1].job
        growing.count, growing.live = 200, False
        await until(pilot, lambda: not app.status.live)
        await until(pilot, lambda: app.panes[1].job is not before and app.panes[1].seen == "done")
        assert app.session.recording.num_steps == 200
        assert "RECORDING" not in str(app.query_one("#head", Static).content)
        assert "the recording is complete" in status_of(app)
        asked = len(growing.asked)
        await pilot.press("F")
        assert "nothing to follow" in status_of(app)
        await pilot.pause(0.7)
        assert len(growing.asked) == asked


async def test_a_replay_of_what_was_recorded_by_then_is_not_called_finished() -> None:
    growing = Growing(20)
    sources = Sources(tail=growing.tail, recording=growing.recording)
    replays = [ready_replay(history_of(dict(part(20).steps), 1024, name="early"))]
    app = ReplayApp(part(20), replays, sources=sources, clock=Clock())
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.panes[1].seen == "done")
        growing.count = 60
        await until(pilot, lambda: len(app.session.recorded) == 60)
        assert f"replays what was recorded up to step {STEPS[19]}" in summary_of(app)[2]
        growing.live = False
        await until(pilot, lambda: not app.status.live)
        await until(pilot, lambda: "finished at step" in summary_of(app)[2])
