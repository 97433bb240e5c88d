"""The screen on real recordings in progress: a played engine under `fdtrace record`, opened as the command does.

FDTRACE_GROW_S=60: the first test lets the recording grow for so many seconds, with keys all the while.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot

from fdtrace.build_replays import add_replay_arguments
from fdtrace.open_replay_screen import screen_of
from fdtrace.trace_reader import TraceReader
from fdtrace.tui import live
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.inspector.panel import InspectorPanel
from fdtrace.tui.inspector.story_screen import StoryScreen
from fdtrace.tui.prompt.help_screen import HelpScreen
from tests.recorder.helpers import query
from tests.tui.recorded import Recorded
from tests.tui.screens import head_of, inspector_of, of, status_of, title_of, until

SECONDS = float(os.environ.get("FDTRACE_GROW_S", "0"))


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    started = Recorded(tmp_path / "live.duckdb")
    yield started
    started.close()


@contextlib.asynccontextmanager
async def opened(path: Path, *arguments: str) -> AsyncIterator[tuple[ReplayApp, Pilot[None]]]:
    """The screen as `fdtrace replay PATH` opens it, with the recording as long as it was then."""
    parser = argparse.ArgumentParser()
    add_replay_arguments(parser)
    reader = TraceReader(path)
    try:
        app = screen_of(reader, parser.parse_args([*(arguments or ("-f", "pr7499")), str(path)]))
        async with app.run_test(size=(120, 40)) as pilot:
            yield of(pilot), pilot
    finally:
        reader.close()


async def ended(recorded: Recorded, pilot: Pilot[None]) -> str:
    """Wait for its end, with the screen in use: the collector waits for whoever reads; what it said."""
    await until(pilot, lambda: recorded.process.poll() is not None)
    return recorded.err


async def grows(app: ReplayApp, pilot: Pilot[None]) -> None:
    """Wait until the recording has grown on the screen."""
    before = len(app.session.recorded)
    await until(pilot, lambda: len(app.session.recorded) > before)


def whole(app: ReplayApp, path: Path) -> bool:
    """Whether the screen shows the steps of the trace, each once."""
    rows = query(path, "SELECT step, num_tokens FROM step ORDER BY step")
    steps, tokens = (np.array(column) for column in zip(*rows, strict=True))
    return np.array_equal(app.session.recorded.step, steps) and np.array_equal(
        app.session.recorded.tokens, tokens
    )


@pytest.mark.slow
async def test_it_grows_while_everything_is_used(recorded: Recorded) -> None:
    until_then = time.monotonic() + SECONDS
    async with opened(recorded.path) as (app, pilot):
        first = len(app.session.recorded)
        await grows(app, pilot)
        assert "RECORDING" in head_of(app)
        assert app.session.cursor == app.session.recorded.end - 1
        await pilot.press("A", *"mine: max_num_batched_tokens - num_running_decodes * 4", "enter")
        await pilot.press(
            "colon",
            *"b num_tokens > limit",
            "enter",
            "colon",
            *"b finished",
            "enter",
            "W",
            *"num_tokens * 2",
            "enter",
        )
        await until(pilot, lambda: len(app.panes) == 3 and all(pane.seen == "done" for pane in app.panes))
        rounds = 0
        while not rounds or time.monotonic() < until_then:
            rounds += 1
            for keys in (
                "h h 5 l",
                "w w a d s 0",
                "1 n N c C",
                "g G",
                "F",
                "enter j k escape",
                "space space",
                "z z",
                "2 x 1",
            ):
                await pilot.press(*keys.split())
            await grows(app, pilot)
        await pilot.press("F", "enter")
        await until(pilot, lambda: "token_budget" in inspector_of(app) or "= " in inspector_of(app))
        before = len(app.session.recorded)
        await until(
            pilot,
            lambda: (
                len(app.session.recorded) > before
                and f"step {app.session.cursor}" in str(app.query_one(InspectorPanel).border_title)
            ),
        )
        assert "error" not in inspector_of(app).lower()
        await pilot.press("escape", "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await grows(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))  # else the next keys are its own
        await pilot.press("F", "h")
        await until(pilot, lambda: str(app.session.cursor) in title_of(app))
        assert len(app.session.recorded) > first
        recorded.engine.terminate()
        assert "steps in" in await ended(recorded, pilot)
        await until(pilot, lambda: "RECORDING" not in head_of(app))
        await until(pilot, lambda: all(pane.seen == "done" for pane in app.panes))
        assert whole(app, recorded.path)
        assert app.session.recording.num_steps == len(app.session.recorded)


async def test_the_engine_is_killed(recorded: Recorded) -> None:
    async with opened(recorded.path) as (app, pilot):
        await grows(app, pilot)
        recorded.engine.kill()
        await ended(recorded, pilot)
        await until(pilot, lambda: "RECORDING" not in head_of(app))
        assert whole(app, recorded.path)
        await pilot.press("j", "r")
        await until(pilot, lambda: isinstance(app.screen, StoryScreen))


@pytest.mark.slow
async def test_its_collector_is_killed_and_started_again(recorded: Recorded) -> None:
    async with opened(recorded.path) as (app, pilot):
        await grows(app, pilot)
        recorded.collector.kill()
        await grows(app, pilot)
        recorded.engine.terminate()
        await ended(recorded, pilot)
        await until(pilot, lambda: "RECORDING" not in head_of(app))
        assert whole(app, recorded.path)


@pytest.mark.slow
async def test_nobody_records_any_more(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the trace says for ever that it goes on."""
    monkeypatch.setattr(live, "SILENT", 3.0)
    async with opened(recorded.path) as (app, pilot):
        await grows(app, pilot)
        recorded.process.kill()  # it would start the collector again
        recorded.collector.kill()
        await until(pilot, lambda: "nothing new for 3 s" in head_of(app))
        assert "fdtrace recover" in status_of(app)
        await pilot.press("h", "enter")
        await until(pilot, lambda: "=" in inspector_of(app))
    recorded.engine.kill()
    recover = [sys.executable, "-m", "fdtrace", "recover", str(recorded.path)]
    subprocess.run(recover, capture_output=True, timeout=120, check=True)


@pytest.mark.slow
async def test_the_trace_is_removed_while_it_is_shown(recorded: Recorded) -> None:
    async with opened(recorded.path) as (app, pilot):
        await grows(app, pilot)
        recorded.collector.suspend()  # else it publishes the next state at that path
        recorded.path.unlink()
        await until(pilot, lambda: "cannot be read now" in head_of(app))
        assert f"{recorded.path} is gone" in status_of(app)
        await pilot.press("A", *"pr7438", "enter")
        await until(pilot, lambda: app.panes[-1].seen == "failed")
        assert "there is no file" in app.panes[-1].job.error or "not there" in app.panes[-1].job.error
        await pilot.press("h", "n", "w")
        recorded.collector.resume()
        await grows(app, pilot)
        assert head_of(app).endswith("RECORDING")
        await pilot.press("x")
        await until(pilot, lambda: app.panes[-1].seen == "done")


async def test_another_recording_takes_its_place(recorded: Recorded, tmp_path: Path) -> None:
    other = Recorded(tmp_path / "other.duckdb")
    try:
        other.engine.kill()
        other.process.wait()  # a whole trace: one in progress would have no parts where it is put
        async with opened(recorded.path) as (app, pilot):
            await grows(app, pilot)
            recorded.process.kill()
            recorded.collector.kill()
            os.replace(other.path, recorded.path)
            await until(pilot, lambda: "cannot be read now" in head_of(app))
            assert "is another recording by now" in status_of(app)
            steps = len(app.session.recorded)
            await pilot.press("h", "h")
            assert len(app.session.recorded) == steps
    finally:
        other.close()
