"""The screen by its keys and by the mouse, on what FastDeploy's own scheduler decided."""

from __future__ import annotations

from functools import partialmethod

import numpy as np
import pytest
from textual import events

from fdtrace.tui import _textual
from fdtrace.tui.app import ReplayApp, run_replay
from fdtrace.tui.keys import HINTS, KEYS
from fdtrace.tui.prompt.help_screen import HelpScreen
from fdtrace.tui.prompt.step_numbers import parse_step
from fdtrace.tui.tables.requests import RequestTable
from fdtrace.tui.terminal import Terminal
from tests.tui.recordings import (
    columns,
    golden,
    history_of,
    lab_history,
    plain_steps,
    recording_of,
    step_rows,
)
from tests.tui.screens import (
    CASE,
    Clock,
    lab_app,
    ready_replay,
    settled,
    status_of,
    summary_of,
    title_of,
    until,
)

RAN = columns(CASE, "original")
EXCEEDED = RAN["step"][RAN["num_tokens"] > 1024].tolist()
LAST = int(columns(CASE, "pr7438")["step"][-1])
SIZE = (100, 30)


async def test_opens_on_the_first_exceeded_step_with_its_requests() -> None:
    async with lab_app().run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        assert app.session.cursor == EXCEEDED[0]
        assert list(app.query_one(RequestTable).rows) == step_rows(CASE, "original")(EXCEEDED[0])
        line = next(line for line in golden(CASE, "original") if line["step"] == EXCEEDED[0])
        assert f"= {line['tokens']}, exceeds 1024 by {line['tokens'] - 1024}" in title_of(app)
        assert f"+{line['tokens'] - 1024}" in summary_of(app)[1]


async def test_borders_tell_how_often_and_by_how_much_each_formula_exceeds() -> None:
    async with lab_app().run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        most = int(RAN["num_tokens"].max()) - 1024
        assert f"{len(EXCEEDED)} of {len(RAN['step'])}" in (app.panes[0].border_subtitle or "")
        assert f"+{most}" in (app.panes[0].border_subtitle or "")
        assert "never exceeds" in (app.panes[2].border_subtitle or "")
        assert "pr7499" in (app.panes[2].border_title or "")


async def test_steps_and_counts() -> None:
    async with lab_app(step=50).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("l")
        assert app.session.cursor == 51
        await pilot.press("left", "h")
        assert app.session.cursor == 49
        await pilot.press("1", "0", "l")
        assert app.session.cursor == 59
        await pilot.press("1", "2", "0", "h")
        assert app.session.cursor == app.session.window.low
        await pilot.press("G")
        assert app.session.cursor == LAST
        await pilot.press("7", "7", "G")
        assert app.session.cursor == 77
        await pilot.press("g")
        assert app.session.cursor == app.session.window.low


async def test_next_and_previous_exceeded_step_belong_to_the_active_pane() -> None:
    async with lab_app(step=EXCEEDED[0]).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("n")
        assert app.session.cursor == EXCEEDED[1]
        await pilot.press("1", "0", "n")
        assert app.session.cursor == EXCEEDED[11]
        await pilot.press("N")
        assert app.session.cursor == EXCEEDED[10]
        await pilot.press("G", "n")
        assert app.session.cursor == LAST
        assert "no step over the limit after this one" in status_of(app)
        await pilot.press("g", "2", "n")
        assert app.session.active == 1
        assert app.session.cursor == app.session.window.low


async def test_goto() -> None:
    async with lab_app(step=10).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("colon", *"123", "enter")
        assert app.session.cursor == 123
        app.post_message(events.Key("colon", ":"))
        for key in "77":
            app.post_message(events.Key(key, key))
        app.post_message(events.Key("enter", None))
        await until(pilot, lambda: app.session.cursor == 77)
        await pilot.press("colon", *"+53", "enter")
        assert app.session.cursor == 130
        await pilot.press("colon", *"12x", "enter")
        assert app.session.cursor == 130
        assert "'12x' is no step" in status_of(app)
        await pilot.press("colon", *"99", "escape", "l")
        assert app.session.cursor == 131
        await until(pilot, lambda: "step 131" in title_of(app))


@pytest.mark.parametrize(
    ("text", "step"),
    [("5", 12), ("20", 20), (":20", 20), ("+3", 18), ("-2", 13), ("50%", 54), ("$", 97), ("9999", 97),
     ("", None), ("x", None), ("+", None), ("1-2", None), ("²", None), ("%", None)],
)  # fmt: skip
def test_what_goto_understands(text: str, step: int | None) -> None:
    assert parse_step(text, cursor=15, low=12, high=97) == step


async def test_digits_make_a_pane_active_unless_they_were_a_count() -> None:
    clock = Clock()
    async with lab_app(step=50, clock=clock).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("3")
        assert app.session.active == 2
        assert app.panes[2].has_class("-active")
        await pilot.press("l")
        assert (app.session.cursor, app.session.active) == (53, 0)
        await pilot.press("3")
        clock.now += 5
        await pilot.press("l")
        assert (app.session.cursor, app.session.active) == (54, 2)
        await pilot.press("4")
        assert app.session.active == 2
        await pilot.press("tab")
        assert app.session.active == 0
        await pilot.press("shift+tab")
        assert app.session.active == 2
        await until(pilot, lambda: "pr7499" in title_of(app))
        assert list(app.query_one(RequestTable).rows) == step_rows(CASE, "pr7499")(54)


async def test_zoom_pan_and_fit_move_all_panes_together() -> None:
    async with lab_app(step=100).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        whole = app.session.window
        await pilot.press("w", "w")
        window = app.session.window
        assert window.span == pytest.approx(whole.span / 4, abs=1)
        assert window.start <= 100 < window.end
        assert {pane._window for pane in app.panes} == {window}
        await pilot.press("d")
        assert app.session.window.start > window.start
        assert app.session.cursor == 100
        await pilot.press("G")
        assert app.session.window.end == whole.end
        await pilot.press("0")
        assert app.session.window == whole
        await pilot.press("3", "w")
        assert app.session.window.span == pytest.approx(whole.span / 8, abs=2)
        await pilot.press("s", "s", "s", "s")
        assert app.session.window == whole


async def test_moving_the_cursor_draws_no_chart_anew() -> None:
    async with lab_app(step=50).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        charts = [pane._chart for pane in app.panes]
        await pilot.press("l", "n", "1", "0", "h")
        assert app.session.cursor != 50
        assert [pane._chart for pane in app.panes] == charts
        assert all(
            one is other for one, other in zip(charts, (pane._chart for pane in app.panes), strict=True)
        )


async def test_a_click_moves_the_cursor_and_takes_the_pane() -> None:
    async with lab_app(step=5).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        pane = app.panes[1]
        chart = pane._chart
        assert chart is not None
        await pilot.click(pane, offset=(1 + chart.left + 12, 5))
        assert app.session.active == 1
        assert app.session.cursor == app.session.window.step_at(12, chart.width)
        assert app.session.window.column(app.session.cursor, chart.width) == 12
        await until(pilot, lambda: f"step {app.session.cursor}" in title_of(app))


async def test_a_drag_moves_the_cursor_along() -> None:
    async with lab_app(step=5).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        pane = app.panes[0]
        chart = pane._chart
        assert chart is not None
        await pilot.mouse_down(pane, offset=(1 + chart.left + 2, 5))
        await pilot.hover(pane, offset=(1 + chart.left + 9, 5))
        await pilot.mouse_up(pane, offset=(1 + chart.left + 9, 5))
        assert app.session.cursor == app.session.window.step_at(9, chart.width)
        await pilot.hover(pane, offset=(1 + chart.left + 3, 5))
        assert app.session.cursor == app.session.window.step_at(9, chart.width)


async def test_resizing_keeps_cursor_and_window_and_fills_the_screen() -> None:
    async with lab_app(step=50).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("w")
        window = app.session.window
        for size in ((80, 24), (300, 80), (60, 16), SIZE):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
            assert (app.session.cursor, app.session.window) == (50, window)
            shown = [pane for pane in app.panes if pane.display]
            assert sum(pane.outer_size.width for pane in shown) == size[0]
            for pane in shown:
                chart = pane._chart
                assert chart is not None
                assert chart.left + chart.width == pane.content_size.width


async def test_one_pane_alone_and_back() -> None:
    async with lab_app(step=50).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("2", "z")
        assert [pane.display for pane in app.panes] == [False, True, False]
        await pilot.press("z")
        assert [pane.display for pane in app.panes] == [True, True, True]


async def test_more_formulas_than_fit_are_paged_beside_the_recording() -> None:
    replays = [ready_replay(history_of(plain_steps([10] * 20), 100, name=f"f{at}")) for at in range(5)]
    recording = recording_of(plain_steps([10] * 20), max_num_batched_tokens=100)
    async with ReplayApp(recording, replays).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        assert [at for at, pane in enumerate(app.panes) if pane.display] == [0, 1, 2, 3]
        await pilot.press("right_square_bracket")
        assert [at for at, pane in enumerate(app.panes) if pane.display] == [0, 3, 4, 5]
        await pilot.press("4")
        assert app.session.active == 5
        await pilot.press("left_square_bracket")
        assert [at for at, pane in enumerate(app.panes) if pane.display] == [0, 1, 2, 3]
        assert app.session.active == 0


async def test_a_wide_terminal_has_the_recording_beside_four_formulas() -> None:
    replays = [ready_replay(history_of(plain_steps([10] * 20), 100, name=f"f{at}")) for at in range(5)]
    recording = recording_of(plain_steps([10] * 20), max_num_batched_tokens=100)
    async with ReplayApp(recording, replays).run_test(size=(200, 50)) as pilot:
        app = await settled(pilot)
        assert [at for at, pane in enumerate(app.panes) if pane.display] == [0, 1, 2, 3, 4]
        await pilot.press("5")
        assert app.session.active == 4


def test_a_fault_of_the_screen_is_raised_and_no_traceback_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault(_app: ReplayApp) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(ReplayApp, "on_mount", fault)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(ReplayApp, "run", partialmethod(ReplayApp.run, headless=True))
    with pytest.raises(ZeroDivisionError):
        run_replay(recording_of(plain_steps([10] * 20)))
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_play_follows_the_clock_and_stops_at_the_end() -> None:
    clock = Clock()
    async with lab_app(step=50, clock=clock).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("space")
        clock.now += 2
        await until(pilot, lambda: app.session.cursor == 50 + int(2 * app.navigation.player.speed))
        await pilot.press("plus")
        before, speed = app.session.cursor, app.navigation.player.speed
        clock.now += 1
        await until(pilot, lambda: app.session.cursor == before + int(speed))
        clock.now += 1000
        await until(pilot, lambda: not app.navigation.player.playing)
        assert app.session.cursor == LAST
        await pilot.press("underscore", "space")
        clock.now += 1
        await until(pilot, lambda: app.session.cursor == LAST - int(app.navigation.player.speed))
        await pilot.press("space")
        assert not app.navigation.player.playing


async def test_requests_scroll() -> None:
    async with lab_app(step=EXCEEDED[100]).run_test(size=(100, 20)) as pilot:
        app = await settled(pilot)
        table = app.query_one(RequestTable)
        assert len(table.rows) > table.size.height
        await pilot.press("j", "j")
        assert table.selected == table.rows[1].request_id
        for _ in range(table.size.height):
            await pilot.press("j")
        assert table.top > 0
        assert table.render_line(1).text.startswith(table.rows[table.top].request_id)
        await pilot.press("pageup", "pageup")
        assert table.top == 0


async def test_help_holds_every_key_and_closes() -> None:
    async with lab_app().run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("l", "3")
        assert app.session.cursor == EXCEEDED[0]
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpScreen)
        await pilot.press("l")
        assert app.session.cursor == EXCEEDED[0] + 1


def test_every_key_calls_a_method_of_the_controller_that_it_names() -> None:
    app = lab_app()
    for key in KEYS:
        controller, _, method = key.action.partition("(")[0].partition(".")
        if controller == "app":
            assert hasattr(app, f"action_{method}"), key
        elif controller:
            assert callable(getattr(getattr(app, controller), method)), key
            assert f".{controller}" in type(getattr(app, controller)).__module__, "the key names the module"
    keys = [name for key in KEYS for name in key.keys.split(",")]
    assert len(keys) == len(set(keys))
    assert {action for _, action in HINTS} <= {key.action for key in KEYS}


@pytest.mark.parametrize("ran", [[], [5], [2000]])
async def test_recordings_of_no_step_and_of_one(ran: list[int]) -> None:
    replays = [ready_replay(history_of(plain_steps(ran), 1024, name="same"))]
    async with ReplayApp(recording_of(plain_steps(ran)), replays).run_test(size=(80, 24)) as pilot:
        app = await settled(pilot)
        for key in (
            "l",
            "h",
            "n",
            "N",
            "g",
            "G",
            "w",
            "s",
            "a",
            "d",
            "0",
            "f",
            "2",
            "z",
            "z",
            "space",
            "space",
        ):
            await pilot.press(key)
        assert app.session.cursor == 0
        await pilot.click(app.panes[0], offset=(10, 4))
        assert app.session.cursor == 0
        assert len(summary_of(app)) == 3


async def test_steps_missing_from_a_pane_are_named() -> None:
    async with lab_app().run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        await pilot.press("G")
        assert "finished at step 232" in summary_of(app)[1]
        assert "not in this history" in title_of(app)
        gone = columns(CASE, "original")
        kept = {name: np.delete(values, slice(20, 30)) for name, values in gone.items()}
    async with ReplayApp(recording_of(kept), step=25).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        assert "lost" in summary_of(app)[1]


async def test_a_terminal_without_blocks_gets_plain_ascii() -> None:
    async with lab_app(terminal=Terminal(ascii=True)).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        text = "".join(segment.text for strip in _textual.strips_of(app) for segment in strip)
        assert text.isascii()
        assert "!" in text


async def test_departure_from_the_recording_is_marked() -> None:
    async with lab_app(versions=["pr7499"]).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        other = lab_history(CASE, "pr7499").columns
        common = min(len(other["step"]), len(RAN["step"]))
        first = int(np.flatnonzero(other["num_tokens"][:common] != RAN["num_tokens"][:common])[0])
        assert app.panes[1].departs == RAN["step"][first]
        assert app.panes[0].departs is None


async def test_the_command_palette_runs_what_keys_do() -> None:
    async with lab_app(step=100).run_test(size=SIZE) as pilot:
        app = await settled(pilot)
        span = app.session.window.span
        await pilot.press("ctrl+p")
        await pilot.pause(0.3)
        await pilot.press(*"zoom in at")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, lambda: app.session.window.span < span)
