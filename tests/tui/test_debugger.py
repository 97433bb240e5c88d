"""Breakpoints, watches, marks, undo, formulas and SQL in the running screen."""

from __future__ import annotations

import numpy as np
from textual.widgets import Static

from fdtrace.recorder.errors import UsageError
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.debugger.breakpoint_list import BreakList
from fdtrace.tui.sources import Answer
from fdtrace.tui.tables.query_rows import AnswerTable
from tests.tui.recordings import case_recording
from tests.tui.screens import case_app, quiet, status_of, until

SIZE = (100, 30)
RECORDING, HISTORY = case_recording("tight_blocks")
COLUMNS = HISTORY.columns
LOW = COLUMNS["step"][(COLUMNS["num_free_blocks"] < 8) & (COLUMNS["num_waiting"] > 0)]


def trouble_of(app: ReplayApp) -> str:
    widget = app.query_one("#trouble", Static)
    return str(widget.content) if widget.display else ""


async def test_a_condition_stops_forwards_and_backwards() -> None:
    async with case_app("tight_blocks", step=0).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("colon", *"b num_free_blocks < 8 and num_waiting > 0", "enter")
        assert f"{len(LOW)} stops" in status_of(app)
        await pilot.press("c")
        assert app.session.cursor == LOW[0]
        assert "num_free_blocks < 8" in status_of(app)
        await pilot.press("c")
        assert app.session.cursor == LOW[1]
        await pilot.press("C")
        assert app.session.cursor == LOW[0]
        await pilot.press("C")
        assert app.session.cursor == LOW[0]
        assert "no breakpoint before" in status_of(app)


async def test_escape_closes_what_is_uppermost() -> None:
    """The inspector over a query's rows, the rows over the requests, and the filter of these."""
    answer = Answer(("step",), [(int(step),) for step in LOW])
    app_ = case_app("tight_blocks", step=0, sql=lambda _query: answer)
    async with app_.run_test(size=(100, 40)) as pilot:
        app = await quiet(pilot)
        below = app.below
        await pilot.press("slash", *"prefill", "enter", "j")
        count = len(below.requests.all)
        await pilot.press("S", *"FROM step", "enter")
        await until(pilot, lambda: below.shown is below.rows)
        await pilot.press("enter")
        await quiet(pilot)
        assert below.shown is below.inspector
        assert [below.requests.display, below.rows.display, below.inspector.display] == [False, False, True]
        await pilot.press("escape")
        assert below.shown is below.rows
        assert below.rows.display
        await pilot.press("escape")
        assert below.shown is below.requests
        assert below.requests.pattern == "prefill"
        await pilot.press("escape")
        await quiet(pilot)
        assert (below.requests.pattern, below.requests.selected) == ("", None)
        assert len(below.requests.rows) == len(below.requests.all) >= count
        await pilot.press("escape")
        assert below.shown is below.requests


async def test_a_bad_condition_says_where_and_can_be_mended() -> None:
    async with case_app("tight_blocks", step=0).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("colon", *"b num_wating > 1", "enter")
        assert "did you mean 'num_waiting'" in trouble_of(app)
        assert "^" in trouble_of(app)
        assert not app.debugger.breaks.all
        assert app.prompt.opened
        await pilot.press("escape")
        assert not trouble_of(app)
        await pilot.press("l")
        assert app.session.cursor == 1


async def test_events_and_steps_are_breakpoints_too() -> None:
    extended = np.array([7, 30], np.int64)
    app_ = case_app("tight_blocks", step=0, event_steps=lambda kind: extended[: 2 * (kind == "extended")])
    async with app_.run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        preempted = COLUMNS["step"][COLUMNS["num_preempted"] > 0]
        await pilot.press("colon", *"b preempted", "enter", "c")
        assert app.session.cursor == preempted[0]
        await pilot.press("B", "d", "escape", "g")
        await pilot.press("colon", *"b extended", "enter")
        await until(pilot, lambda: "2 steps of the recording" in status_of(app))
        await pilot.press("c")
        assert app.session.cursor == 7
        await pilot.press("2", "0", "l", "b", "g", "c", "c")
        assert app.session.cursor == 27
        await pilot.press("b", "g", "c", "c")
        assert app.session.cursor == 30


async def test_the_list_disables_edits_and_goes() -> None:
    async with case_app("tight_blocks", step=20).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("b", "colon", *"b num_tokens > limit", "enter", "B")
        assert isinstance(app.screen, BreakList)
        await pilot.press("j", "space", "escape")
        assert [point.enabled for point in app.debugger.breaks.all] == [True, False]
        await pilot.press("g", "c")
        assert app.session.cursor == 20
        await pilot.press("B", "j", "e")
        await until(pilot, lambda: app.prompt.opened)
        assert app.prompt.line.value == "num_tokens > limit"
        await pilot.press(*" + 5", "enter")
        assert [point.text for point in app.debugger.breaks.all] == ["20", "num_tokens > limit + 5"]
        await pilot.press("g", "B", "enter")
        assert app.session.cursor == 20


async def test_playing_stops_at_a_breakpoint() -> None:
    app_ = case_app("tight_blocks", step=0)
    async with app_.run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("colon", *"25", "enter", "b", "g", "space")
        app_.clock.now += 60  # type: ignore[attr-defined]
        await until(pilot, lambda: not app.navigation.player.playing)
        assert app.session.cursor == 25
        assert "stopped at a breakpoint" in status_of(app)


async def test_watches_show_their_value_in_each_pane() -> None:
    async with case_app("tight_blocks", step=5).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("W", *"num_tokens - token_budget", "enter")
        shown = str(app.query_one("#watches", Static).content)
        value = int(COLUMNS["num_tokens"][5] - COLUMNS["token_budget"][5])
        assert shown.startswith(f"num_tokens - token_budget = 1 {value}")
        await pilot.press("l")
        value = int(COLUMNS["num_tokens"][6] - COLUMNS["token_budget"][6])
        assert f"= 1 {value}" in str(app.query_one("#watches", Static).content)
        await pilot.press("B", "d", "escape")
        assert not app.query_one("#watches").display


async def test_marks_and_undo() -> None:
    async with case_app("tight_blocks", step=5).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("m", "q", "G")
        last = app.session.cursor
        await pilot.press("apostrophe", "q")
        assert app.session.cursor == 5
        await pilot.press("apostrophe", "z")
        assert "no mark z" in status_of(app)
        await pilot.press("u")
        assert app.session.cursor == last
        await pilot.press("ctrl+o")
        assert app.session.cursor == 5
        await pilot.press("u")
        assert "no jump to undo" in status_of(app)
        await pilot.press("U", "U")
        assert app.session.cursor == 5


async def test_a_formula_is_added_edited_and_removed() -> None:
    async with case_app("tight_blocks", []).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("A", *"pr7499", "enter")
        await quiet(pilot)
        assert [pane.job.replay.name for pane in app.panes] == ["recorded", "pr7499"]
        assert "never exceeds" in (app.panes[1].border_subtitle or "")
        await pilot.press("colon", *"f mine: max_num_batched", "enter")
        assert "did you mean 'max_num_batched_tokens'" in trouble_of(app)
        await pilot.press(*"_tokens; charge 1", "enter")
        await quiet(pilot)
        assert not trouble_of(app)
        assert app.session.active == 2
        assert app.panes.current.series is not None
        assert len(app.panes.current.series.over) == len(app.session.recorded.over)
        await pilot.press("e")
        assert app.prompt.line.value == "mine: max_num_batched_tokens; charge 1"
        await pilot.press("backspace", *"4", "enter")
        await quiet(pilot)
        assert app.panes.current.series is not None
        assert not len(app.panes.current.series.over)
        await pilot.press("A", *"mine: 5", "enter")
        assert "already" in trouble_of(app)
        await pilot.press("escape", "D")
        await pilot.pause()
        assert len(app.panes) == 2
        await pilot.press("1", "D")
        assert "the recording stays" in status_of(app)


async def test_rows_of_a_query_are_stepped_through() -> None:
    steps = [11, 4, 60]

    def sql(text: str) -> Answer:
        if "step" not in text:
            raise UsageError("that query cannot be run", why="no such table")
        return Answer(("what", "step"), [("a", steps[0]), ("b", steps[1]), ("c", steps[2])])

    async with case_app("tight_blocks", [], sql=sql).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("S", *"FROM nothing", "enter")
        await until(pilot, lambda: "no such table" in trouble_of(app))
        assert app.prompt.line.value == "FROM nothing"
        await pilot.press("escape", "colon", *"sql SELECT step", "enter")
        await until(pilot, lambda: app.query_one(AnswerTable).display)
        await quiet(pilot)
        assert app.session.cursor == 11
        await pilot.press("j")
        assert app.session.cursor == 4
        await pilot.press("j", "j")
        assert app.session.cursor == 60
        await pilot.click(AnswerTable, offset=(3, 2))
        await pilot.pause()
        assert app.session.cursor == 11
        await pilot.press("escape")
        assert not app.query_one(AnswerTable).display


async def test_the_mouse_sets_breakpoints_and_clicks_hints() -> None:
    async with case_app("tight_blocks", [], step=0).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.click(app.panes[0], offset=(40, 5), button=3)
        assert len(app.debugger.breaks.all) == 1
        status = status_of(app)
        await pilot.press("c", "l")
        status = status_of(app)
        at = status.index("n/N")
        await pilot.click("#status", offset=(at + 2, 0))
        await pilot.pause()
        assert app.session.recorded.index(app.session.cursor) in app.session.recorded.over


async def test_actions_wait_while_the_line_asks() -> None:
    async with case_app("tight_blocks", [], step=3).run_test(size=SIZE) as pilot:
        app = await quiet(pilot)
        await pilot.press("slash", *"l:S/ABe", "tab")
        assert app.prompt.line.value == "l:S/ABe"
        assert app.session.cursor == 3
