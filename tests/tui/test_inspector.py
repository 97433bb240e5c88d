"""Why a step exceeds, and a request's story: by key and by mouse, on the lab's cases."""

from __future__ import annotations

from fdtrace.replayer.model.events import StepRow
from fdtrace.tui.inspector.panel import InspectorPanel
from fdtrace.tui.inspector.story_screen import StoryScreen
from fdtrace.tui.inspector.waits_screen import WaitsScreen
from fdtrace.tui.sources import StepEvent
from fdtrace.tui.tables.requests import RequestTable
from tests.tui.recordings import case_recording
from tests.tui.screens import case_app, inspector_of, quiet, status_of, until

FOUR = ("original", "pr7438", "pr7499", "pr7623")
WIDE = (200, 50)


async def test_tight_blocks_shows_why_pr7438_did_not_help() -> None:
    async with case_app("tight_blocks", FOUR[1:]).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        assert app.session.recorded.index(app.session.cursor) in app.session.recorded.over
        assert "the first of" in status_of(app)
        assert "Enter tells why" in status_of(app)
        await pilot.press("enter")
        await quiet(pilot)
        said = inspector_of(app)
        assert "max(512 − 32×(3+1), min(512, 512))" in said
        assert "max(384, 512)" in said
        assert "min(max_num_batched_tokens, 512) = 512" in " ".join(said.split())
        assert "tokens ran that nobody counted" in said
        first, second = app.panes[0].series, app.panes[1].series
        assert first is not None
        assert second is not None
        assert first.over.tolist() == second.over.tolist()


async def test_the_inspector_follows_the_cursor_and_closes() -> None:
    async with case_app("tight_blocks").run_test(size=(100, 30)) as pilot:
        app = await quiet(pilot)
        await pilot.press("enter")
        app = await quiet(pilot)
        panel = app.query_one(InspectorPanel)
        before = inspector_of(app)
        assert f"step {app.session.cursor}" in (panel.border_title or "")
        await pilot.press("n")
        await quiet(pilot)
        assert f"step {app.session.cursor}" in (panel.border_title or "")
        assert inspector_of(app) != before
        await pilot.press("j", "j")
        assert panel.top == 2
        await pilot.press("k", "k", "pagedown")
        assert panel.top > 2
        await pilot.press("tab")
        await quiet(pilot)
        assert "pr7438" in inspector_of(app)
        await pilot.press("escape")
        assert not panel.display
        assert app.query_one(RequestTable).display


async def test_a_double_click_opens_the_inspector_and_another_closes_it() -> None:
    async with case_app("tight_blocks").run_test(size=(100, 30)) as pilot:
        app = await quiet(pilot)
        await pilot.double_click(app.panes[0], offset=(30, 5))
        await quiet(pilot)
        assert app.query_one(InspectorPanel).display
        await pilot.double_click(InspectorPanel, offset=(10, 2))
        assert not app.query_one(InspectorPanel).display


async def test_the_queues_head_says_why_it_waits() -> None:
    recording, history = case_recording("tight_blocks")
    reasons = history.columns["not_admitted"]
    step = int(history.columns["step"][(reasons == "blocks").argmax()])
    async with case_app("tight_blocks", ["original"], step=step).run_test(size=(100, 50)) as pilot:
        app = await quiet(pilot)
        await pilot.press("enter")
        await quiet(pilot)
        assert "too few free blocks" in inspector_of(app)
        assert "more were needed" in inspector_of(app)
        assert "not admitted r" in inspector_of(app)
    assert recording.num_steps == len(reasons)


async def test_full_reservation_shows_which_formulas_hang_where_and_why() -> None:
    async with case_app("full_reservation", ["pr7499", "pr7438"]).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        series = app.panes[1].series
        assert series is not None
        hang = series.history.outcome.hang
        assert hang is not None
        assert f"HANGS at {hang.step}" in (app.panes[1].border_subtitle or "")
        assert "HANGS" not in (app.panes[2].border_subtitle or "")
        await pilot.press("colon", *str(hang.step), "enter", "enter")
        await quiet(pilot)
        said = " ".join(inspector_of(app).split())
        assert f"hangs since step {hang.step}" in said
        assert "= 64 − 16×(3+1)" in said
        assert "with no budget the loop visits no request" in said


async def test_a_users_formula_is_spelled_out_too() -> None:
    mine = "mine: max_num_batched_tokens - num_waiting * 2 - num_running_decodes; charge 2"
    async with case_app("tight_blocks", [mine]).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        await pilot.press("enter")
        await quiet(pilot)
        said = inspector_of(app)
        assert "= 512 − " in said
        assert "each decode was charged 2 in the loop" in said


async def test_recorded_events_are_shown() -> None:
    events = [StepEvent("extended", "r7", "", '{"num_blocks": 2}')]
    async with case_app("tight_blocks", [], events=lambda _step: events).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        await pilot.press("enter")
        await quiet(pilot)
        assert 'extended r7 {"num_blocks": 2}' in inspector_of(app)


async def test_the_story_of_a_request_leads_to_its_steps() -> None:
    async with case_app("preemptions", ["pr7499"]).run_test(size=(100, 40)) as pilot:
        app = await quiet(pilot)
        await pilot.press("j", "r")
        await until(pilot, lambda: isinstance(app.screen, StoryScreen))
        table = app.screen_stack[0].query_one(RequestTable)
        screen = app.screen
        assert isinstance(screen, StoryScreen)
        assert [story.request_id for story in screen.stories] == [table.selected] * 2
        assert screen.stories[0].steps_to_first_token
        steps = [step for step in screen._steps if step is not None]
        began = app.session.cursor
        await pilot.press("j", "end", "enter")
        assert app.session.cursor == steps[-1]
        await pilot.press("u")
        assert app.session.cursor == began != steps[-1]


async def test_the_waits_of_a_pane_lead_to_where_they_began() -> None:
    async with case_app("preemptions", ["pr7499"]).run_test(size=(110, 40)) as pilot:
        app = await quiet(pilot)
        await pilot.press("2", "t")
        await until(pilot, lambda: isinstance(app.screen, WaitsScreen))
        screen = app.screen
        assert isinstance(screen, WaitsScreen)
        assert screen.heading == "waits under pr7499"
        texts = [text for _, text in screen.lines()]
        assert any("began again after a preemption" in text for text in texts)
        longest = next(
            at for at, (step, text) in enumerate(screen.lines()) if step is not None and " waited " in text
        )
        step = screen.lines()[longest][0]
        for _ in range(sum(step is not None for step, _ in screen.lines()[:longest])):
            await pilot.press("j")
        await pilot.press("enter")
        assert app.session.cursor == step
        await pilot.press("escape", "1", "t")
        await until(pilot, lambda: "is not known here" in status_of(app))


async def test_a_filter_finds_requests_and_a_click_tells_their_story() -> None:
    async with case_app("preemptions", []).run_test(size=(100, 40)) as pilot:
        app = await quiet(pilot)
        table = app.query_one(RequestTable)
        count = len(table.rows)
        wanted: StepRow = table.rows[3]
        await pilot.press("slash", *wanted.request_id, "enter")
        assert 0 < len(table.rows) < count
        assert all(wanted.request_id in row.request_id for row in table.rows)
        await pilot.click(RequestTable, offset=(3, 2))
        assert table.selected == table.rows[0].request_id
        await pilot.pause(0.6)
        await pilot.click(RequestTable, offset=(3, 2))
        await until(pilot, lambda: isinstance(app.screen, StoryScreen))
        await pilot.press("escape", "escape")
        assert len(table.rows) == count
        await pilot.press("colon", *"r nobody", "enter")
        await until(pilot, lambda: "no step of that request" in status_of(app))
