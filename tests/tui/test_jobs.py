"""Panes that fill in later: progress, cancelling, failure."""

from __future__ import annotations

import threading

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.panes.jobs import PaneReplay, ShareDone
from tests.tui.recordings import history_of, lab_history, lab_recording, plain_steps, recording_of, step_rows
from tests.tui.screens import CASE, of, ready_replay, settled, summary_of, title_of, until

SIZE = (100, 30)


class Slow:
    """A replay that goes as far as it is let."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.go = threading.Event()
        self.started = 0

    def compute(self, progress: ShareDone, cancelled: Cancelled) -> History:
        self.started += 1
        progress(0.42)
        while not self.go.wait(0.01):
            if cancelled():
                raise RuntimeError("stopped")
        return self.history

    @property
    def replay(self) -> PaneReplay:
        return PaneReplay(self.history.name, self.history.how, self.compute)


async def test_the_screen_is_in_use_before_a_replay_is_there() -> None:
    slow = Slow(lab_history(CASE, "pr7438"))
    app = ReplayApp(lab_recording(CASE), [slow.replay, ready_replay(lab_history(CASE, "pr7499"))], step=10)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "42%" in (app.panes[1].border_subtitle or ""))
        assert app.panes[2].border_subtitle == "waiting"
        await pilot.press("l")
        assert app.session.cursor == 11
        assert "running 42%" in summary_of(app)[2]
        assert app.session.window.high == 233
        await pilot.press("2", "n")
        assert app.session.cursor == 11
        slow.go.set()
        await until(pilot, lambda: app.panes[2].series is not None and app.panes[2].seen == "done")
        assert "never exceeds" in (app.panes[1].border_subtitle or "")
        assert app.session.window.high == 291
        assert app.session.cursor == 11


async def test_a_replay_is_cancelled_and_started_anew() -> None:
    slow = Slow(lab_history(CASE, "pr7438"))
    async with ReplayApp(lab_recording(CASE), [slow.replay], step=10).run_test(size=SIZE) as pilot:
        app = of(pilot)
        await until(pilot, lambda: app.panes[1].job.state == "running")
        await pilot.press("tab", "x")
        await until(pilot, lambda: app.panes[1].seen == "cancelled")
        assert app.panes[1].border_subtitle == "cancelled"
        slow.go.set()
        await pilot.press("x")
        await until(pilot, lambda: app.panes[1].seen == "done")
        assert slow.started == 2
        assert app.panes[1].series is not None


async def test_leaving_the_screen_stops_what_is_computed() -> None:
    slow = Slow(lab_history(CASE, "pr7438"))
    app = ReplayApp(lab_recording(CASE), [slow.replay])
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.panes[1].job.state == "running")
        await pilot.press("q")
    for _ in range(6000):
        if app.panes[1].job.ended:
            break
        slow.go.wait(0.01)
    assert app.panes[1].job.state == "cancelled"


async def test_a_failed_replay_says_why_and_the_others_go_on() -> None:
    def refuse(_progress: ShareDone, _cancelled: Cancelled) -> History:
        raise UsageError("formula 'mine' divides by zero", why="at step 17")

    def slip(_progress: ShareDone, _cancelled: Cancelled) -> History:
        raise KeyError("num_running")

    replays = [PaneReplay("mine", "rescheduled", refuse), PaneReplay("other", "as recorded", slip)]
    replays.append(ready_replay(lab_history(CASE, "pr7499")))
    async with ReplayApp(lab_recording(CASE), replays).run_test(size=(160, 30)) as pilot:
        app = await settled(pilot)
        assert [pane.job.state for pane in app.panes] == ["done", "failed", "failed", "done"]
        drawn = "\n".join(app.panes[1].render_line(y).text for y in range(app.panes[1].content_size.height))
        assert "formula 'mine' divides by zero" in drawn
        assert "at step 17" in drawn
        assert "KeyError" in app.panes[2].job.error


async def test_requests_that_cannot_be_read_are_told_in_their_place() -> None:
    def broken(step: int) -> list[StepRow]:
        raise UsageError(f"cannot read step {step}")

    async with ReplayApp(lab_recording(CASE), rows=broken, step=7).run_test(size=SIZE) as pilot:
        app = of(pilot)
        await until(pilot, lambda: "cannot read step 7" in title_of(app))


async def test_only_the_latest_step_is_fetched_when_reading_is_slow() -> None:
    gate, asked = threading.Event(), list[int]()

    def slow(step: int) -> list[StepRow]:
        asked.append(step)
        gate.wait(10)
        return step_rows(CASE, "original")(step)

    async with ReplayApp(lab_recording(CASE), rows=slow, step=7).run_test(size=SIZE) as pilot:
        app = of(pilot)
        await until(pilot, lambda: asked == [7])
        await pilot.press("l", "l", "l")
        gate.set()
        await until(pilot, lambda: "step 10 " in title_of(app))
        assert asked == [7, 10]


def test_the_recording_as_a_history_counts_what_exceeds() -> None:
    history = recorded_history(lab_recording(CASE))
    assert (history.outcome.num_exceeded, history.outcome.peak_tokens) == (126, 1208)
    assert history.outcome.max_excess == 184
    assert history.how == "recorded"
    empty = recorded_history(recording_of(plain_steps([])))
    assert (empty.outcome.num_steps, empty.outcome.budget_use) == (0, 0.0)


async def test_a_longer_history_gets_room_on_the_axis() -> None:
    recording = recording_of(plain_steps([10] * 20), max_num_batched_tokens=100)
    longer = history_of(plain_steps([10] * 45), 100, name="longer")
    async with ReplayApp(recording, [ready_replay(longer)]).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        assert app.session.window.high == 45
        await pilot.press("G")
        assert app.session.cursor == 44
