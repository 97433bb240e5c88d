"""The session: panes, cursor and window, without a terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fdtrace.tui.panes.jobs import Job
from fdtrace.tui.replay_session import MAX_PANES, ReplaySession, recorded_job
from fdtrace.tui.sources import Sources
from tests.tui.recordings import history_of, plain_steps, recording_of
from tests.tui.screens import ready_replay


def session_of(tokens: list[int], others: int = 0, step: int | None = None) -> ReplaySession:
    """A session on a recording of steps of so many tokens, beside other formulas."""
    recording = recording_of(plain_steps(tokens))
    first = recorded_job(recording, None, Sources())
    assert first.series is not None
    jobs = [Job(ready_replay(history_of(plain_steps(tokens), 1024, name=f"f{at}"))) for at in range(others)]
    return ReplaySession(recording, first.series, [first, *jobs], Sources(), step)


def test_nothing_of_textual_is_needed() -> None:
    code = "import sys, fdtrace.tui.replay_session; sys.exit('textual' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_begins_on_the_first_exceeded_step() -> None:
    assert session_of([10, 20, 2000, 3000]).cursor == 2
    assert session_of([10, 20, 30]).cursor == 0
    assert session_of([10, 20, 2000], step=1).cursor == 1
    assert session_of([10, 20, 2000], step=99).cursor == 2


@pytest.mark.parametrize("width", [40, 80, 120, 200, 400])
def test_each_pane_is_on_some_page_with_the_recording_beside_it(width: int) -> None:
    session = session_of([10], others=9)
    seen = set()
    for page in range(10):
        session.page = page
        visible = session.visible(width)
        assert visible[0] == 0
        assert 2 <= len(visible) <= MAX_PANES
        seen |= set(visible)
    assert seen == set(range(10))
    session.alone, session.active = True, 4
    assert session.visible(width) == [4]


def test_the_window_follows_the_cursor_where_it_leaves_it() -> None:
    session = session_of([10] * 1000)
    session.window = session.window.at(100, 50)
    session.move(120)
    assert (session.window.start, session.window.end) == (100, 150)
    session.move(500)
    assert session.window.start <= 500 < session.window.end
    session.move_to_end()
    assert session.cursor == 999
    assert session.window.end == 1000
    assert session.window.span == 50
